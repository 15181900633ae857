"""Helios (Peking University and ByteDance, arXiv 2603.04379): self-attention, cross-attention and feed-forward.

The pipeline makes a video chunk by chunk; self-attention and feed-forward also read the earlier frames.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec

_two_frames = random("batch", "in_channels", 2, "height", "width")


def _frames(config: Any, size: Size) -> int:
    return min(size.frames, 9)  # latent frames in a chunk


HELIOS = ModelSpec(
    class_name="HeliosTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=random("batch", "in_channels", _frames, "height", "width"),
        timestep=filled(500.0),
        encoder_hidden_states=text("text_dim"),
        # The history is the first frame, then the last 16, 2 and 1 frames, the latest at the finest resolution.
        latents_history_short=_two_frames,
        latents_history_mid=_two_frames,
        latents_history_long=random("batch", "in_channels", 16, "height", "width"),
        indices_latents_history_short=lambda config, size: torch.tensor([[0, 19]]),
        indices_latents_history_mid=lambda config, size: torch.arange(17, 19)[None],
        indices_latents_history_long=lambda config, size: torch.arange(1, 17)[None],
        indices_hidden_states=lambda config, size: torch.arange(20, 20 + _frames(config, size))[None],
    ),
    text=512,
)
