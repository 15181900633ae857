"""VQ-Diffusion (Microsoft, arXiv 2111.14822): attention, cross-attention and feed-forward of each block.

The class is also a U-Net's building block; alone it denoises images made of entries of a codebook.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, call, text
from relcache.models.spec import ModelSpec


def _entries(config: Any, size: Size) -> torch.Tensor:
    return torch.randint(config.num_vector_embeds, (size.batch, size.height * size.width))


VQ_DIFFUSION = ModelSpec(
    class_name="Transformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2?", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "class_labels"),
    inputs=call(
        hidden_states=_entries,
        encoder_hidden_states=text("cross_attention_dim"),
        timestep=lambda config, size: torch.tensor(config.num_embeds_ada_norm // 2),
    ),
    text=77,
)
