"""SANA-WM (NVIDIA): a camera-controlled world model. Attention (gated delta rule, or softmax in every fourth block),
cross-attention and convolutional feed-forward of each block; its refiner is a model of its own."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    latents = (size.frames, size.height, size.width)
    pose = torch.eye(4).flatten()
    lens = torch.tensor([size.width, size.height, size.width / 2, size.height / 2])  # two focal lengths, the centre
    timestep = torch.full((size.batch, 1, size.frames), 500.0)
    timestep[..., 0] = 0  # the first frame is given
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, *latents),
        "timestep": timestep,
        "encoder_hidden_states": torch.randn(size.batch, 1, size.text, config.caption_channels),
        "mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "camera_conditions": torch.cat([pose, lens]).repeat(size.batch, size.frames, 1),
        "chunk_plucker": torch.randn(size.batch, config.chunk_plucker_channels, *latents),
    }


SANA_WM = ModelSpec(
    class_name="SanaWMTransformer3DModel",
    modules=("blocks.*.attn", "blocks.*.cross_attn", "blocks.*.mlp"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=300,
)
