"""Chroma (lodestones, 2025): FLUX.1's double and single blocks, told the timestep by one network for all of them."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.spec import ModelSpec, Size, grid_ids


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    height, width = size.height // 2, size.width // 2  # the pipeline packs 2 x 2 latents into a token
    return {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_ids": grid_ids(1, height, width),
        "txt_ids": torch.zeros(size.text, 3),
        "attention_mask": torch.ones(size.batch, size.text + height * width),
    }


CHROMA = ModelSpec(
    class_name="ChromaTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
