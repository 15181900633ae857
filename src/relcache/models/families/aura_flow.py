"""AuraFlow (fal.ai, 2024): double blocks with joint attention, then single blocks."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
    }


AURA_FLOW = ModelSpec(
    class_name="AuraFlowTransformer2DModel",
    modules=(
        joint("joint_transformer_blocks.*.attn"),
        "joint_transformer_blocks.*.ff",
        "joint_transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.attn",
        "single_transformer_blocks.*.ff",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=256,
)
