"""Wan-Animate (Alibaba, arXiv 2509.14055): the blocks of Wan, and cross-attention to the face after every few of them.

The encoders of motion and face read the driving video alone: every step computes them.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text, where
from relcache.models.spec import ModelSpec


def _frames(config: Any, size: Size) -> int:
    return min(size.frames, 20)  # a longer video is made in segments of 77 frames


def _face(config: Any, size: Size) -> torch.Tensor:
    side = config.motion_encoder_size
    return torch.rand(size.batch, 3, 4 * (_frames(config, size) - 1) + 1, side, side) * 2 - 1


WAN_ANIMATE = ModelSpec(
    class_name="WanAnimateTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn", "face_adapter.*"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image", "face_pixel_values"),
    inputs=call(
        # the reference image is the first frame
        hidden_states=random(
            "batch",
            lambda config, size: 2 * config.latent_channels + 4,
            lambda config, size: _frames(config, size) + 1,
            "height",
            "width",
        ),
        timestep=filled(500),
        encoder_hidden_states=text("text_dim"),
        pose_hidden_states=random("batch", "latent_channels", _frames, "height", "width"),
        face_pixel_values=_face,
        encoder_hidden_states_image=where("image_dim", random("batch", 257, "image_dim")),
    ),
    text=512,
)
