"""Kandinsky 5.0 (Sber, arXiv 2511.14993): self-attention, cross-attention and feed-forward of each visual block.

The text blocks do not depend on the sample: every step computes them.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec


def channels(config: Any, size: Size) -> int:
    """Return the channels of the sample; models that continue an image add the image's latents and a mask."""
    return 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim


def _positions(config: Any, size: Size) -> list[torch.Tensor]:
    lengths = (size.frames, size.height, size.width)
    return [torch.arange(length // patch) for length, patch in zip(lengths, config.patch_size, strict=True)]


KANDINSKY5 = ModelSpec(
    class_name="Kandinsky5Transformer3DModel",
    modules=(
        "visual_transformer_blocks.*.self_attention",
        "visual_transformer_blocks.*.cross_attention",
        "visual_transformer_blocks.*.feed_forward",
    ),
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=call(
        hidden_states=random("batch", "frames", "height", "width", channels),
        encoder_hidden_states=text("in_text_dim"),
        timestep=filled(500.0),
        pooled_projections=random("batch", "in_text_dim2"),
        visual_rope_pos=_positions,
        text_rope_pos=lambda config, size: torch.arange(size.text),
    ),
    text=512,
)
