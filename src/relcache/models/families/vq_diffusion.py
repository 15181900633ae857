"""VQ-Diffusion (Microsoft, arXiv 2111.14822): attention, cross-attention and feed-forward of each block.

The class is also a U-Net's building block; alone it denoises images of codebook entries.
"""

import torch

from relcache.models.inputs import call, text
from relcache.models.spec import ModelSpec

VQ_DIFFUSION = ModelSpec(
    class_name="Transformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2?", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "class_labels"),
    inputs=call(
        hidden_states=lambda config, size: torch.randint(
            config.num_vector_embeds, (size.batch, size.height * size.width)
        ),
        encoder_hidden_states=text("cross_attention_dim"),
        timestep=lambda config, size: torch.tensor(config.num_embeds_ada_norm // 2),
    ),
    text=77,
)
