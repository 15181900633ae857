"""SANA-WM (NVIDIA): a camera-controlled world model. Attention (gated delta rule, or softmax in every fourth block),
cross-attention and convolutional feed-forward of each block; its refiner is a separate model."""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, video
from relcache.models.spec import ModelSpec


def _timestep(config: Any, size: Size) -> torch.Tensor:
    timestep = torch.full((size.batch, 1, size.frames), 500.0)
    timestep[..., 0] = 0  # the first frame is known
    return timestep


def _camera(config: Any, size: Size) -> torch.Tensor:
    lens = torch.tensor([size.width, size.height, size.width / 2, size.height / 2])  # two focal lengths, the centre
    return torch.cat([torch.eye(4).flatten(), lens]).repeat(size.batch, size.frames, 1)


SANA_WM = ModelSpec(
    class_name="SanaWMTransformer3DModel",
    modules=("blocks.*.attn", "blocks.*.cross_attn", "blocks.*.mlp"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=video("in_channels"),
        timestep=_timestep,
        encoder_hidden_states=random("batch", 1, "text", "caption_channels"),
        mask=filled(1, "batch", "text"),
        camera_conditions=_camera,
        chunk_plucker=video("chunk_plucker_channels"),
    ),
    text=300,
)
