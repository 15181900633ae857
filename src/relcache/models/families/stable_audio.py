"""Stable Audio Open (Stability AI, arXiv 2407.14358): attention, cross-attention and feed-forward of each block.

Latent audio lies along `width`.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = size.width + 1  # the first one holds the duration and the timestep
    angles = (tokens, config.attention_head_dim // 2)
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.width),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.cross_attention_input_dim),
        "global_hidden_states": torch.randn(size.batch, 1, config.global_states_input_dim),
        "rotary_embedding": (torch.ones(angles), torch.zeros(angles)),
    }


STABLE_AUDIO = ModelSpec(
    class_name="StableAudioDiTModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "global_hidden_states"),
    inputs=_inputs,
    text=130,
)
