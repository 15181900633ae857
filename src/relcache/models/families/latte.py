"""Latte (arXiv 2401.03048): spatial blocks, which attend within a frame, each followed by a temporal one, which attends
within a place of the picture."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Part, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
    }


LATTE = ModelSpec(
    class_name="LatteTransformer3DModel",
    modules=(
        Part("transformer_blocks.*.attn1", layout="folded"),
        Part("transformer_blocks.*.attn2", layout="folded"),
        Part("transformer_blocks.*.ff", layout="folded"),
        Part("temporal_transformer_blocks.*.attn1", layout="folded"),
        Part("temporal_transformer_blocks.*.ff", layout="folded"),
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=120,
)
