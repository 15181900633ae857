"""Qwen-Image 2.1 (Alibaba): self-attention and feed-forward over one sequence of text and images.

If its pipeline caches keys and values, the first step computes the whole sequence, and later steps the image alone.
Later steps then cannot use the first step's outputs, so the second step is computed in full.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec


def _image_mask(config: Any, size: Size) -> torch.Tensor:
    entries = size.height * size.width // 4  # one for 2 x 2 tokens of the image
    return (torch.arange(size.text + entries) >= size.text).expand(size.batch, -1)


QWEN_IMAGE_21 = ModelSpec(
    class_name="QwenImage21Transformer2DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.img_mlp"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=call(
        hidden_states=random(
            "batch",
            lambda config, size: size.height * size.width,
            lambda config, size: config.in_channels * config.patch_size**2,
        ),
        encoder_hidden_states=text("context_in_dim"),
        timestep=filled(0.5),
        img_shapes=lambda config, size: [[(1, size.height, size.width)]] * size.batch,
        img_mask=_image_mask,
    ),
    text=512,  # a long prompt: the pipeline neither pads nor cuts
)
