"""Wan-Animate (Alibaba, arXiv 2509.14055): the blocks of Wan, and cross-attention to the face after every few of them.

The encoders of motion and face see the driving video alone and are left as they are.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    frames = min(size.frames, 20)  # a longer video is made in segments of 77 frames
    grid = (size.height, size.width)
    face = config.motion_encoder_size
    inputs = {
        # the reference image comes first, as a frame of its own
        "hidden_states": torch.randn(size.batch, 2 * config.latent_channels + 4, frames + 1, *grid),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
        "pose_hidden_states": torch.randn(size.batch, config.latent_channels, frames, *grid),
        "face_pixel_values": torch.rand(size.batch, 3, 4 * (frames - 1) + 1, face, face) * 2 - 1,
    }
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = torch.randn(size.batch, 257, config.image_dim)
    return inputs


WAN_ANIMATE = ModelSpec(
    class_name="WanAnimateTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn", "face_adapter.*"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image", "face_pixel_values"),
    inputs=_inputs,
    text=512,
)
