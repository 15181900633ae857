"""PixArt-α and PixArt-Σ (Huawei, arXiv 2310.00426 and 2403.04692): both attentions and feed-forward of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "timestep": torch.full((size.batch,), 500),
        # Read by PixArt-α at 1024 pixels only.
        "added_cond_kwargs": {
            "resolution": torch.full((size.batch, 2), 1024.0),
            "aspect_ratio": torch.ones(size.batch, 1),
        },
    }


PIXART = ModelSpec(
    class_name="PixArtTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=300,
    pipelines=("PixArtSigmaPipeline",),
)
