"""GLM-Image (Z.ai, 2026): joint attention of each block, and the feed-forward that serves image and text in turn."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Part, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = (size.height // config.patch_size) * (size.width // config.patch_size)
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "prior_token_id": torch.zeros(size.batch, tokens, dtype=torch.long),
        "prior_token_drop": torch.zeros(size.batch, tokens, dtype=torch.bool),
        "timestep": torch.full((size.batch,), 500.0),
        "target_size": torch.full((size.batch, 2), 1024.0),
        "crop_coords": torch.zeros(size.batch, 2),
    }


GLM_IMAGE = ModelSpec(
    class_name="GlmImageTransformer2DModel",
    modules=(joint("transformer_blocks.*.attn1"), Part("transformer_blocks.*.ff", calls=2)),
    conditioning=("encoder_hidden_states", "prior_token_id", "prior_token_drop"),
    inputs=_inputs,
    text=256,  # the pipeline encodes what the prompt puts in quotes, byte by byte, and nothing else
)
