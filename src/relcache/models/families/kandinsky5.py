"""Kandinsky 5.0 (Sber, arXiv 2511.14993): self-attention, cross-attention and feed-forward of each visual block.

The text blocks are computed at every step: they see no sample.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # Where it is trained to be given a picture, the sample comes with the latents of one and a mask.
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    sizes = (size.frames, size.height, size.width)
    return {
        "hidden_states": torch.randn(size.batch, *sizes, channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.in_text_dim),
        "timestep": torch.full((size.batch,), 500.0),
        "pooled_projections": torch.randn(size.batch, config.in_text_dim2),
        "visual_rope_pos": [torch.arange(n // patch) for n, patch in zip(sizes, config.patch_size, strict=True)],
        "text_rope_pos": torch.arange(size.text),
    }


KANDINSKY5 = ModelSpec(
    class_name="Kandinsky5Transformer3DModel",
    modules=(
        "visual_transformer_blocks.*.self_attention",
        "visual_transformer_blocks.*.cross_attention",
        "visual_transformer_blocks.*.feed_forward",
    ),
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=_inputs,
    text=512,
)
