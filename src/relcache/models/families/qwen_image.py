"""Qwen-Image, its Edit and Layered versions (Alibaba, arXiv 2508.02324): joint attention, one feed-forward a stream."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    height, width = size.height // 2, size.width // 2  # the pipeline packs 2 x 2 latents into a token
    inputs = {
        "hidden_states": torch.randn(size.batch, size.frames * height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
        # A frame is one picture more: a layer, or one that is edited.
        "img_shapes": [[(1, height, width)] * size.frames] * size.batch,
    }
    if config.use_additional_t_cond:
        inputs["additional_t_cond"] = torch.zeros(size.batch, dtype=torch.long)
    return inputs


QWEN_IMAGE = ModelSpec(
    class_name="QwenImageTransformer2DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.img_mlp",
        "transformer_blocks.*.txt_mlp",
    ),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=_inputs,
    text=512,  # at most: prompts are not padded
    pipelines=("QwenImagePipeline",),
)
