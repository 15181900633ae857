"""Refiner of SANA-WM (NVIDIA): the video half of LTX-2, a few frames at a time; its audio half is never called.

Before the first block of frames and after each, a call stores keys and values for self-attention. `kv_cache_mode`
tells it apart: as a branch of its own it is computed in full.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = min(size.frames, 3) * size.height * size.width  # latent frames that are refined together
    heads, channels = config.num_attention_heads, config.attention_head_dim
    split = config.rope_type == "split"
    angles = torch.rand(size.batch, *((heads, tokens, channels // 2) if split else (tokens, heads * channels)))
    return {
        "hidden_states": torch.randn(size.batch, tokens, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
        "timestep": torch.full((size.batch, tokens), 500.0),
        "video_rotary_emb": (angles.cos(), angles.sin()),
        "encoder_attention_mask": torch.ones(size.batch, size.text),
    }


SANA_WM_REFINER = ModelSpec(
    class_name="SanaWMLTX2RefinerTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "kv_cache_mode"),
    inputs=_inputs,
    text=1024,
)
