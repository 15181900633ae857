"""LTX-Video (Lightricks, arXiv 2501.00103): self-attention, cross-attention and feed-forward of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = size.frames * size.height * size.width
    return {
        "hidden_states": torch.randn(size.batch, tokens, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.caption_channels),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
        "rope_interpolation_scale": (8 / 25, 32, 32),  # of the autoencoder; 25 frames a second
    }


LTX = ModelSpec(
    class_name="LTXVideoTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=128,
    pipelines=("LTXPipeline",),
)
