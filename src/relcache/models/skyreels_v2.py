"""SkyReels-V2 (Skywork, arXiv 2504.13074): self-attention, cross-attention and feed-forward of each block.

The diffusion-forcing models give each frame a timestep of its own.
"""

from typing import Any

import torch

from relcache.models.base import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
    }
    if config.image_dim is not None:
        inputs["encoder_hidden_states_image"] = torch.randn(size.batch, 257, config.image_dim)
    if config.inject_sample_info:
        inputs["timestep"] = torch.full((size.batch, size.frames), 500)
        inputs["enable_diffusion_forcing"] = True
        inputs["fps"] = [1] * size.batch  # 0 stands for 16 frames a second, 1 for any other number
    return inputs


SKYREELS_V2 = ModelSpec(
    class_name="SkyReelsV2Transformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=_inputs,
    text=512,
)
