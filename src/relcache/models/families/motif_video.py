"""Motif-Video (Motif Technologies): double blocks with joint attention, then single blocks, the last of which decode.

Some configurations let the video attend to the text once more after the joint attention.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint, parallel


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
    }


MOTIF_VIDEO = ModelSpec(
    class_name="MotifVideoTransformer3DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.cross_attn?",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
        parallel("single_transformer_blocks.*", ("proj_mlp", "attn", "cross_attn?"), "proj_out"),
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
