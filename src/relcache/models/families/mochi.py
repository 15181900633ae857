"""Mochi 1 (Genmo, 2024): joint attention and the feed-forwards of video and text, which the last block does not need.

Its scheduler's timesteps rise.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
    }


MOCHI = ModelSpec(
    class_name="MochiTransformer3DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff", "transformer_blocks.*.ff_context"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=_inputs,
    text=256,
)
