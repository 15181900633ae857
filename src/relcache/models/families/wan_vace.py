"""Wan VACE (Alibaba, arXiv 2503.07598): the control blocks, which read the noisy sample too, then the blocks of Wan."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    grid = (size.frames, size.height, size.width)
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, *grid),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
        "control_hidden_states": torch.randn(size.batch, config.vace_in_channels, *grid),
    }


WAN_VACE = ModelSpec(
    class_name="WanVACETransformer3DModel",
    modules=(
        "vace_blocks.*.attn1",
        "vace_blocks.*.attn2",
        "vace_blocks.*.ffn",
        "blocks.*.attn1",
        "blocks.*.attn2",
        "blocks.*.ffn",
    ),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=_inputs,
    text=512,
)
