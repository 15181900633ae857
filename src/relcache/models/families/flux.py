"""FLUX.1 (Black Forest Labs, 2024): double blocks with joint attention, then single blocks."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, grid_ids, joint, parallel


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = (size.height // 2) * (size.width // 2)  # the pipeline packs 2 x 2 latents into a token
    inputs = {
        "hidden_states": torch.randn(size.batch, tokens, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "pooled_projections": torch.randn(size.batch, config.pooled_projection_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_ids": grid_ids(1, size.height // 2, size.width // 2),
        "txt_ids": torch.zeros(size.text, 3),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 3.5)
    return inputs


DOUBLE_AND_SINGLE = (
    joint("transformer_blocks.*.attn"),
    "transformer_blocks.*.ff",
    "transformer_blocks.*.ff_context",
    parallel("single_transformer_blocks.*", ("proj_mlp", "attn"), "proj_out"),
)

FLUX = ModelSpec(
    class_name="FluxTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=_inputs,
    text=512,
    pipelines=(
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxControlNetPipeline",
        "FluxKontextPipeline",
        "FluxFillPipeline",
        "FluxControlPipeline",
    ),
)
