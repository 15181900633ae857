"""SANA-Video (NVIDIA, arXiv 2509.24695): linear self-attention, cross-attention and the convolutional feed-forward of
each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "timestep": torch.full((size.batch,), 500.0),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 6 * config.guidance_embeds_scale)
    return inputs


SANA_VIDEO = ModelSpec(
    class_name="SanaVideoTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=300,
)
