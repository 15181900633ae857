"""Nucleus-Image (Nucleus AI): attention and feed-forward of each block, most of these mixtures of experts."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    height, width = size.height // config.patch_size, size.width // config.patch_size
    return {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "img_shapes": [(1, height, width)] * size.batch,
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "timestep": torch.full((size.batch,), 0.5),
    }


NUCLEUS_IMAGE = ModelSpec(
    class_name="NucleusMoEImageTransformer2DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.img_mlp"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=_inputs,
    text=1024,  # at most: prompts are padded to a multiple of 8
)
