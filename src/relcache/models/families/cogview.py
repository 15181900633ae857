"""CogView3-Plus (arXiv 2403.05121) and CogView4 (Zhipu AI): joint attention of each block, and feed-forward."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Part, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_embed_dim),
        "timestep": torch.full((size.batch,), 500.0),
        "original_size": torch.full((size.batch, 2), 8.0 * size.height),
        "target_size": torch.full((size.batch, 2), 8.0 * size.width),
        "crop_coords": torch.zeros(size.batch, 2),
    }


COGVIEW3_PLUS = ModelSpec(
    class_name="CogView3PlusTransformer2DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=224,
)

COGVIEW4 = ModelSpec(
    class_name="CogView4Transformer2DModel",
    # One feed-forward serves the image and then the text.
    modules=(joint("transformer_blocks.*.attn1"), Part("transformer_blocks.*.ff", calls=2)),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=1024,  # at most: prompts are padded to a multiple of 16
)
