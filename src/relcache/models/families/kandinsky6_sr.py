"""Kandinsky 6 super-resolution (Sber): sparse self-attention and feed-forward of each block, on tiles, without text."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    channels = 2 * config.in_visual_dim + 1  # the sample comes with an anchor and its mask
    return {
        "hidden_states": torch.randn(size.batch, size.frames, size.height, size.width, channels),
        "timestep": torch.full((size.batch,), 500.0),
    }


KANDINSKY6_SR = ModelSpec(
    class_name="Kandinsky6SRTransformer3DModel",
    modules=("visual_transformer_blocks.*.self_attention", "visual_transformer_blocks.*.feed_forward"),
    inputs=_inputs,
)
