"""Allegro (Rhymes AI, arXiv 2410.15458): self-attention, cross-attention and feed-forward of each block."""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, grid_ids, text, video
from relcache.models.spec import ModelSpec


def _rotation(config: Any, size: Size) -> tuple[Any, ...]:
    grid = (size.frames // config.patch_size_t, size.height // config.patch_size, size.width // config.patch_size)
    angles = [torch.randn(length, config.attention_head_dim // 3) for length in grid]
    positions = tuple(axis[None] for axis in grid_ids(*grid).long().T)
    return tuple((angle.cos(), angle.sin()) for angle in angles), positions


ALLEGRO = ModelSpec(
    class_name="AllegroTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        image_rotary_emb=_rotation,
        hidden_states=video("in_channels"),
        encoder_hidden_states=text("caption_channels"),
        timestep=filled(500),
        encoder_attention_mask=filled(1.0, "batch", "text"),
    ),
    text=512,
)
