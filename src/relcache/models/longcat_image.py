"""LongCat-Image (Meituan, 2025): double blocks with joint attention, then single blocks."""

from typing import Any

import torch

from relcache.models.base import ModelSpec, Size, grid_ids, joint, parallel


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    height, width = size.height // 2, size.width // 2  # the pipeline packs 2 x 2 latents into a token
    places = torch.arange(size.text).float()
    return {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_ids": grid_ids(1, height, width) + torch.tensor([1.0, size.text, size.text]),
        "txt_ids": torch.stack([torch.zeros(size.text), places, places], dim=1),
    }


LONGCAT_IMAGE = ModelSpec(
    class_name="LongCatImageTransformer2DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
        parallel("single_transformer_blocks.*", ("proj_mlp", "attn"), "proj_out"),
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
