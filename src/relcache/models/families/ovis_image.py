"""Ovis-Image (Alibaba, arXiv 2511.22982): double blocks with joint attention, then single blocks with a gated MLP."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.spec import ModelSpec, Size, grid_ids


def ovis_inputs(config: Any, size: Size) -> dict[str, Any]:
    """Arguments of one forward of Ovis-Image."""
    height, width = size.height // 2, size.width // 2  # the pipeline packs 2 x 2 latents into a token
    places = torch.arange(size.text).float()
    return {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_ids": grid_ids(1, height, width),
        "txt_ids": torch.stack([torch.zeros(size.text), places, places], dim=1),
    }


OVIS_IMAGE = ModelSpec(
    class_name="OvisImageTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states",),
    inputs=ovis_inputs,
    text=256,
)
