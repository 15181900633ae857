"""Wan 2.1 and 2.2 (Alibaba, arXiv 2503.20314): self-attention, cross-attention and feed-forward of each block.

Wan 2.2 has two experts, one for the noisy and one for the later steps; each is a model of its own.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def wan_inputs(config: Any, size: Size) -> dict[str, Any]:
    """Arguments of one forward of Wan, and of the models that were made from it."""
    inputs = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
    }
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = torch.randn(size.batch, 257, config.image_dim)
    return inputs


WAN = ModelSpec(
    class_name="WanTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=wan_inputs,
    text=512,
    pipelines=("WanPipeline",),
)
