"""Cosmos Predict 1, 2 and 2.5 and Transfer 2.5 (NVIDIA, arXiv 2501.03575): self-attention, cross-attention and
feed-forward of each block."""

from typing import Any

from relcache.models.inputs import Size, call, filled, pair, random, text, video, where
from relcache.models.spec import ModelSpec

_text = text(where("use_crossattn_projection", "crossattn_proj_in_channels", "text_embed_dim"))
_image = random("batch", "img_context_num_tokens", "img_context_dim_in")


def _mask_channels(config: Any, size: Size) -> int:
    """Return the channels of the mask that marks the known frames of a video to be continued."""
    return config.in_channels - config.out_channels


COSMOS = ModelSpec(
    class_name="CosmosTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        encoder_hidden_states=where("img_context_dim_in", pair(_text, _image), _text),
        hidden_states=video("out_channels"),
        timestep=filled(0.5),
        condition_mask=where(_mask_channels, filled(0.0, "batch", _mask_channels, "frames", "height", "width")),
        padding_mask=where("concat_padding_mask", filled(0.0, 1, 1, "height", "width")),
    ),
    text=512,
)
