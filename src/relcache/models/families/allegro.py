"""Allegro (Rhymes AI, arXiv 2410.15458): self-attention, cross-attention and feed-forward of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, grid_ids


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    grid = (
        size.frames // config.patch_size_t,
        size.height // config.patch_size,
        size.width // config.patch_size,
    )
    angles = [torch.randn(length, config.attention_head_dim // 3) for length in grid]
    frequencies = tuple((angle.cos(), angle.sin()) for angle in angles)
    positions = tuple(axis[None] for axis in grid_ids(*grid).long().T)
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
        "timestep": torch.full((size.batch,), 500),
        "encoder_attention_mask": torch.ones(size.batch, size.text),
        "image_rotary_emb": (frequencies, positions),
    }


ALLEGRO = ModelSpec(
    class_name="AllegroTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
