"""DiT: class-conditional transformer (arXiv 2212.09748), attention and feed-forward of each block."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "class_labels": torch.zeros(size.batch, dtype=torch.long),
    }


DIT = ModelSpec(
    class_name="DiTTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    conditioning=("class_labels",),
    inputs=_inputs,
    pipelines=("DiTPipeline",),
)
