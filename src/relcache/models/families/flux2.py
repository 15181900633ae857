"""FLUX.2 (Black Forest Labs, 2025): double blocks with joint attention, then single blocks of one fused module."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, grid_ids, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    height, width = size.height // 2, size.width // 2  # the pipeline packs 2 x 2 latents into a token
    inputs = {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_ids": grid_ids(1, height, width, 1),
        "txt_ids": grid_ids(1, 1, 1, size.text),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 4.0)
    return inputs


FLUX2 = ModelSpec(
    class_name="Flux2Transformer2DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.attn",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
