"""Kandinsky 6 (Sber): blocks that denoise video and its sound together, each attending to the other.

The text blocks do not depend on the sample: every step computes them.
"""

import math
from typing import Any

from relcache.models.families.kandinsky5 import channels
from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec


def _audio_tokens(config: Any, size: Size) -> int:
    seconds = (4 * (size.frames - 1) + 1) / 24
    return math.ceil(seconds * 44100 / 1024)


KANDINSKY6 = ModelSpec(
    class_name="Kandinsky6Transformer3DModel",
    modules=(
        "visual_transformer_blocks.*.video_dec_block.self_attention",
        "visual_transformer_blocks.*.video_dec_block.cross_attention",
        "visual_transformer_blocks.*.audio_dec_block.self_attention",
        "visual_transformer_blocks.*.audio_dec_block.cross_attention",
        "visual_transformer_blocks.*.va_cross_attention",
        "visual_transformer_blocks.*.av_cross_attention",
        "visual_transformer_blocks.*.video_dec_block.feed_forward",
        "visual_transformer_blocks.*.audio_dec_block.feed_forward",
    ),
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=call(
        hidden_states=random("batch", "frames", "height", "width", channels),
        audio_hidden_states=random("batch", _audio_tokens, "in_audio_dim"),
        encoder_hidden_states=text("in_text_dim"),
        encoder_attention_mask=filled(True, "batch", "text"),
        pooled_projections=random("batch", "in_text_dim2"),
        timestep=filled(500.0),
    ),
    text=1024,
)
