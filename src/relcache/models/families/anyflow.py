"""AnyFlow (NVIDIA, arXiv 2605.13724): self-attention, cross-attention and feed-forward of each block.

The FAR variant makes a video chunk by chunk. After each chunk it passes all frames so far through the same blocks, to
store keys and values. `kv_cache_flag` makes that call a branch of its own, which is computed in full.
"""

from dataclasses import replace
from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec

_inputs = call(
    hidden_states=random("batch", "frames", "in_channels", "height", "width"),
    timestep=filled(500.0, "batch", "frames"),
    r_timestep=filled(400.0, "batch", "frames"),
    encoder_hidden_states=text("text_dim"),
)


def _chunk_inputs(config: Any, size: Size) -> dict[str, Any]:
    frames = min(size.frames, max(config.chunk_partition))
    empty = torch.zeros(2, size.batch, config.num_attention_heads, 0, config.attention_head_dim)
    return _inputs(config, replace(size, frames=frames)) | {
        "chunk_partition": [frames],
        "kv_cache": {layer: {"full_cache": empty, "compressed_cache": empty} for layer in range(config.num_layers)},
        # The forward writes the numbers of tokens into this dict; listed here, they leave it unchanged.
        "kv_cache_flag": {
            "num_cached_chunks": 0,
            "is_cache_step": False,
            "num_cached_full_tokens": 0,
            "num_cached_compressed_tokens": 0,
        },
    }


ANYFLOW = ModelSpec(
    class_name="AnyFlowTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=_inputs,
    text=512,
)

ANYFLOW_FAR = replace(
    ANYFLOW,
    class_name="AnyFlowFARTransformer3DModel",
    conditioning=(*ANYFLOW.conditioning, "kv_cache_flag"),
    inputs=_chunk_inputs,
)
