"""AnyFlow (NVIDIA, arXiv 2605.13724): self-attention, cross-attention and feed-forward of each block.

The FAR variant makes a video chunk by chunk. After each chunk it passes all frames so far through the same blocks, to
store keys and values; `kv_cache_flag` tells that call apart: as a branch of its own it is computed in full.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size

_MODULES = ("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn")


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, size.frames, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch, size.frames), 500.0),
        "r_timestep": torch.full((size.batch, size.frames), 400.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
    }


def _chunk_inputs(config: Any, size: Size) -> dict[str, Any]:
    frames = min(size.frames, max(config.chunk_partition))
    nothing = torch.zeros(2, size.batch, config.num_attention_heads, 0, config.attention_head_dim)
    return _inputs(config, Size(size.batch, size.height, size.width, frames, size.text)) | {
        "chunk_partition": [frames],
        "kv_cache": {layer: {"full_cache": nothing, "compressed_cache": nothing} for layer in range(config.num_layers)},
        # forward writes the numbers of tokens into it: given here, they leave it as it was
        "kv_cache_flag": {
            "num_cached_chunks": 0,
            "is_cache_step": False,
            "num_cached_full_tokens": 0,
            "num_cached_compressed_tokens": 0,
        },
    }


ANYFLOW = ModelSpec(
    class_name="AnyFlowTransformer3DModel",
    modules=_MODULES,
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=_inputs,
    text=512,
)

ANYFLOW_FAR = ModelSpec(
    class_name="AnyFlowFARTransformer3DModel",
    modules=_MODULES,
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image", "kv_cache_flag"),
    inputs=_chunk_inputs,
    text=512,
)
