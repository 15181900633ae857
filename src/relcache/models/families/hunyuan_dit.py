"""Hunyuan-DiT (Tencent, arXiv 2405.08748): self-attention, cross-attention and feed-forward of each block.

The projections of the long skip connections are always computed: nothing is added to them, they are the trunk itself.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = (size.height // config.patch_size) * (size.width // config.patch_size)
    # The numbers of text tokens are fixed by the model. Rotations are by nothing.
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, config.text_len, config.cross_attention_dim),
        "text_embedding_mask": torch.ones(size.batch, config.text_len, dtype=torch.long),
        "encoder_hidden_states_t5": torch.randn(size.batch, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": torch.ones(size.batch, config.text_len_t5, dtype=torch.long),
        "image_meta_size": torch.full((size.batch, 6), 1024.0),
        "style": torch.zeros(size.batch, dtype=torch.long),
        "image_rotary_emb": (
            torch.ones(tokens, config.attention_head_dim),
            torch.zeros(tokens, config.attention_head_dim),
        ),
    }


HUNYUAN_DIT = ModelSpec(
    class_name="HunyuanDiT2DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ff"),
    conditioning=(
        "encoder_hidden_states",
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
    ),
    inputs=_inputs,
    text=77 + 256,  # of the two encoders
)
