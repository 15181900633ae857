"""ComfyUI's transformers: the lists of blocks that are skipped, by the class of the diffusion model."""

from __future__ import annotations

from relcache import ModelSpec
from relcache.models.runs import run


def two_lists(class_name: str) -> ModelSpec:
    """Return the spec of a model with blocks of two streams, and then blocks of both in one."""
    return ModelSpec(
        class_name,
        modules=(run("double_blocks.*", "img", "txt"), run("single_blocks.*")),
        conditioning=("context",),
        sample="x",
    )


SPECS = {
    spec.class_name: spec
    for spec in (
        two_lists("Flux"),
        two_lists("HunyuanVideo"),
        ModelSpec("WanModel", modules=(run("blocks.*"),), conditioning=("context",), sample="x"),
        ModelSpec(
            "QwenImageTransformer2DModel",
            modules=(run("transformer_blocks.*", "hidden_states", "encoder_hidden_states", returns=(1, 0)),),
            conditioning=("context",),
            sample="x",
        ),
    )
}


def spec_of(model: object) -> ModelSpec | None:
    """Return the spec of a diffusion model's class or its nearest ancestor; None if there is none."""
    return next((SPECS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in SPECS), None)
