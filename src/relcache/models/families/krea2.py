"""Krea 2 (Krea): attention and feed-forward of each block over text and image."""

from typing import Any

import torch

from relcache.models.padding import masked_text
from relcache.models.spec import ModelSpec, Size, grid_ids


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    image_ids = grid_ids(1, size.height // 2, size.width // 2)  # the pipeline packs 2 x 2 latents into a token
    text = (size.batch, size.text)
    return {
        "hidden_states": torch.randn(size.batch, len(image_ids), config.in_channels),
        "encoder_hidden_states": torch.randn(*text, config.num_text_layers, config.text_hidden_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "position_ids": torch.cat([torch.zeros(size.text, 3), image_ids]),
        "encoder_attention_mask": torch.ones(text, dtype=torch.bool),
    }


KREA2 = ModelSpec(
    class_name="Krea2Transformer2DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    padding=(("transformer_blocks*:*", masked_text("encoder_attention_mask")),),
    inputs=_inputs,
    text=512,
)
