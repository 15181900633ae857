"""Refiner of SANA-WM (NVIDIA): the video half of LTX-2, a few frames at a time; its audio half is never called.

Before the first block of frames and after each, a call stores keys and values for self-attention. `kv_cache_mode`
makes that call a branch of its own, which is computed in full.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec


def _tokens(config: Any, size: Size) -> int:
    return min(size.frames, 3) * size.height * size.width  # three latent frames are refined together


def _rotation(config: Any, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, heads, channels = _tokens(config, size), config.num_attention_heads, config.attention_head_dim
    shape = (heads, tokens, channels // 2) if config.rope_type == "split" else (tokens, heads * channels)
    angles = torch.rand(size.batch, *shape)
    return angles.cos(), angles.sin()


SANA_WM_REFINER = ModelSpec(
    class_name="SanaWMLTX2RefinerTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "kv_cache_mode"),
    inputs=call(
        video_rotary_emb=_rotation,
        hidden_states=random("batch", _tokens, "in_channels"),
        encoder_hidden_states=text("caption_channels"),
        timestep=filled(500.0, "batch", _tokens),
        encoder_attention_mask=filled(1.0, "batch", "text"),
    ),
    text=1024,
)
