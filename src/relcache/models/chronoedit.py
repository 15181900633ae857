"""ChronoEdit (NVIDIA, arXiv 2510.04290), an edit as a short video: self-attention, cross-attention and feed-forward."""

from typing import Any

import torch

from relcache.models.base import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
    }
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = torch.randn(size.batch, 257, config.image_dim)
    return inputs


CHRONOEDIT = ModelSpec(
    class_name="ChronoEditTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=_inputs,
    text=512,
)
