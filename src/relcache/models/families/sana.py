"""SANA and SANA-Sprint (NVIDIA, arXiv 2410.10629 and 2503.09641): linear self-attention, cross-attention and the
convolutional feed-forward of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "timestep": torch.full((size.batch,), 500 * config.timestep_scale),
    }
    if config.guidance_embeds:
        inputs["guidance"] = torch.full((size.batch,), 4.5 * config.guidance_embeds_scale)
    return inputs


SANA = ModelSpec(
    class_name="SanaTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=300,
)
