"""EasyAnimate 5.1 (Alibaba, arXiv 2405.18991): joint attention and the feed-forwards of video and text."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    def latents(channels: int) -> torch.Tensor:
        return torch.randn(size.batch, channels, size.frames, size.height, size.width)

    inputs: dict[str, Any] = {
        "hidden_states": latents(config.out_channels),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
    }
    if config.in_channels > config.out_channels:  # the models from images, and those that repaint or are controlled
        inputs["inpaint_latents"] = latents(config.in_channels - config.out_channels)
    return inputs


EASYANIMATE = ModelSpec(
    class_name="EasyAnimateTransformer3DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff", "transformer_blocks.*.txt_ff"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_t5"),
    inputs=_inputs,
    text=256,
)
