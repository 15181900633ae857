"""PRX (Photoroom): attention of the image to text and image, and the feed-forward, of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, parallel


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.context_in_dim),
        "attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
    }


PRX = ModelSpec(
    class_name="PRXTransformer2DModel",
    modules=("blocks.*.attention", parallel("blocks.*", ("gate_proj", "up_proj"), "down_proj")),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=256,
)
