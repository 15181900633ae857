"""EasyAnimate 5.1 (Alibaba, arXiv 2405.18991): joint attention and the feed-forwards of video and text."""

from typing import Any

from relcache.models.inputs import Size, call, filled, text, video, where
from relcache.models.spec import ModelSpec, joint


def _more_channels(config: Any, size: Size) -> int:
    """Return the channels that models have for a first image, a repaint or a control."""
    return config.in_channels - config.out_channels


EASYANIMATE = ModelSpec(
    class_name="EasyAnimateTransformer3DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff", "transformer_blocks.*.txt_ff"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_t5"),
    inputs=call(
        hidden_states=video("out_channels"),
        timestep=filled(500.0),
        encoder_hidden_states=text("text_embed_dim"),
        inpaint_latents=where(_more_channels, video(_more_channels)),
    ),
    text=256,
)
