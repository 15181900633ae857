"""Runs of whole blocks in the models of serving engines, which have the blocks of diffusers and fuse what is inside.

Such a class has the name of diffusers', so these specs are not in `SPECS`: an engine's plugin passes them as `spec=`,
with granularity="module", which leaves the unit as it is. Each block receives the streams that the last one returned.
"""

from __future__ import annotations

from relcache.models.spec import ModelSpec, Part


def run(pattern: str, *streams: str, others: tuple[str, ...] = (), returns: tuple[int, ...] = ()) -> Part:
    """Return the part of a list of blocks, and of the lists `others` after it, as one unit.

    `streams` and `returns` are as in `Part`; without streams a block's first argument is its only one.
    """
    return Part(pattern, streams, returns=returns, residual=True, run=(pattern, *others))


RUNS = {
    spec.class_name: spec
    for spec in (
        ModelSpec(
            class_name="FluxTransformer2DModel",
            modules=(
                run(
                    "transformer_blocks.*", "hidden_states", "encoder_hidden_states",
                    others=("single_transformer_blocks.*",), returns=(1, 0),
                ),
            ),
            conditioning=("encoder_hidden_states", "pooled_projections"),
        ),
        ModelSpec(
            class_name="QwenImageTransformer2DModel",
            modules=(run("transformer_blocks.*", "hidden_states", "encoder_hidden_states", returns=(1, 0)),),
            conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
        ),
        ModelSpec(
            class_name="WanTransformer3DModel",
            modules=(run("blocks.*", "hidden_states"),),
            conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
        ),
    )
}  # fmt: skip
"""For SGLang-Diffusion's and vLLM-Omni's own models, by the name of the class."""
