"""Kandinsky 6 (Sber): blocks that denoise video and its sound together, each attending to the other.

The text blocks are computed at every step: they see no sample.
"""

import math
from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # Where it is trained to be given a picture, the sample comes with the latents of one and a mask.
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    seconds = (4 * (size.frames - 1) + 1) / 24
    audio = math.ceil(seconds * 44100 / 1024)
    return {
        "hidden_states": torch.randn(size.batch, size.frames, size.height, size.width, channels),
        "audio_hidden_states": torch.randn(size.batch, audio, config.in_audio_dim),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.in_text_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "pooled_projections": torch.randn(size.batch, config.in_text_dim2),
        "timestep": torch.full((size.batch,), 500.0),
    }


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
    inputs=_inputs,
    text=1024,
)
