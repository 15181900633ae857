"""Qwen-Image 2.1 (Alibaba): self-attention and feed-forward over one sequence of text and pictures.

Where its pipeline keeps keys and values, the first step works on the whole sequence and the others on the picture
alone; then the first step's outputs do not serve the others, and the second step is computed in full.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    tokens = size.height * size.width
    slots = tokens // 4  # the mask has one entry for 2 x 2 tokens of the picture
    return {
        "hidden_states": torch.randn(size.batch, tokens, config.in_channels * config.patch_size**2),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.context_in_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_shapes": [[(1, size.height, size.width)]] * size.batch,
        "img_mask": (torch.arange(size.text + slots) >= size.text).expand(size.batch, -1),
    }


QWEN_IMAGE_21 = ModelSpec(
    class_name="QwenImage21Transformer2DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.img_mlp"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=_inputs,
    text=512,  # a long prompt: the pipeline neither pads nor cuts
)
