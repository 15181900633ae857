"""VQ-Diffusion (Microsoft, arXiv 2111.14822): attention, cross-attention and feed-forward of each block.

The class is a U-Net's building block as well; alone it denoises pictures made of entries of a codebook.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randint(config.num_vector_embeds, (size.batch, size.height * size.width)),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.cross_attention_dim),
        "timestep": torch.tensor(config.num_embeds_ada_norm // 2),
    }


VQ_DIFFUSION = ModelSpec(
    class_name="Transformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2?", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "class_labels"),
    inputs=_inputs,
    text=77,
)
