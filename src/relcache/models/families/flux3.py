"""FLUX.3 (Black Forest Labs, 2026): blocks of the image alone, then joint blocks; attention and MLP side by side.

The blocks of the text alone and of the reference images alone see nothing noisy and are computed.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, grid_ids


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    height, width = size.height // 2, size.width // 2  # the pipeline packs 2 x 2 latents into a token
    inputs = {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 0.5),
        "img_ids": grid_ids(1, height, width, 1) * 0.5,
        "txt_ids": grid_ids(1, 1, 1, size.text),
    }
    if config.flow_map:
        inputs["target_timestep"] = torch.full((size.batch,), 0.25)
    return inputs


FLUX3 = ModelSpec(
    class_name="Flux3Transformer2DModel",
    modules=(
        "mode_blocks.image.*.attn",
        "mode_blocks.image.*.ff",
        "single_transformer_blocks.*.attn",
        "single_transformer_blocks.*.ff",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=480,  # the pipeline pads to multiples of 80, and writes prompts of up to 350 words itself
)
