"""Stable Diffusion 3 and 3.5 (Stability AI, arXiv 2403.03206): joint attention, self-attention, feed-forwards.

The second attention is that of 3.5 Medium; the last block leaves the text without a feed-forward.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "pooled_projections": torch.randn(size.batch, config.pooled_projection_dim),
        "timestep": torch.full((size.batch,), 500.0),
    }


STABLE_DIFFUSION_3 = ModelSpec(
    class_name="SD3Transformer2DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.attn2?",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
    ),
    conditioning=("encoder_hidden_states", "pooled_projections", "skip_layers"),
    inputs=_inputs,
    text=77 + 256,  # CLIP's and T5's
    pipelines=("StableDiffusion3Pipeline",),
)
