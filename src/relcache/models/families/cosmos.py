"""Cosmos Predict 1, 2 and 2.5 and Transfer 2.5 (NVIDIA, arXiv 2501.03575): self-attention, cross-attention and
feed-forward of each block."""

from typing import Any

from relcache.models.inputs import Size, call, filled, made, pair, random, text, video, where
from relcache.models.spec import ModelSpec


def _text_channels(config: Any, size: Size) -> int:
    return config.crossattn_proj_in_channels if config.use_crossattn_projection else config.text_embed_dim


def _text(config: Any, size: Size) -> Any:
    """Return the features of the text, in some models as a pair with those of an image."""
    recipe = text(_text_channels)
    if config.img_context_dim_in:
        recipe = pair(recipe, random("batch", "img_context_num_tokens", "img_context_dim_in"))
    return made(recipe, config, size)


def _mask_channels(config: Any, size: Size) -> int:
    """Return the channels of the mask by which models that continue a video know its first frames."""
    return config.in_channels - config.out_channels


COSMOS = ModelSpec(
    class_name="CosmosTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        encoder_hidden_states=_text,
        hidden_states=video("out_channels"),
        timestep=filled(0.5),
        condition_mask=where(_mask_channels, filled(0.0, "batch", _mask_channels, "frames", "height", "width")),
        padding_mask=where("concat_padding_mask", filled(0.0, 1, 1, "height", "width")),
    ),
    text=512,
)
