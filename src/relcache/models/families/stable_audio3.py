"""Stable Audio 3 (Stability AI): differential attention, cross-attention and feed-forward of each block.

Latent audio lies along `width`.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.io_channels, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.cond_token_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "global_hidden_states": torch.randn(size.batch, config.global_cond_dim),
    }


STABLE_AUDIO3 = ModelSpec(
    class_name="StableAudio3DiTModel",
    modules=("transformer_blocks.*.self_attn", "transformer_blocks.*.cross_attn", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "global_hidden_states"),
    inputs=_inputs,
    text=257,
)
