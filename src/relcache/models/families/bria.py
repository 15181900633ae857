"""Bria 3.2 and FIBO (Bria AI, 2025): double blocks with joint attention, then single blocks.

FIBO hands each block another layer of the text encoder, which takes the place of half of the text's channels.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, grid_ids, joint, parallel

MODULES = (
    joint("transformer_blocks.*.attn"),
    "transformer_blocks.*.ff",
    "transformer_blocks.*.ff_context",
    parallel("single_transformer_blocks.*", ("proj_mlp", "attn"), "proj_out"),
)


def _tokens(config: Any, size: Size, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, height * width, config.in_channels),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.joint_attention_dim),
        "timestep": torch.full((size.batch,), 500.0),
        "img_ids": grid_ids(1, height, width),
        "txt_ids": torch.zeros(size.text, 3),
    }


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return _tokens(config, size, size.height // 2, size.width // 2)  # the pipeline packs 2 x 2 latents into a token


def _fibo_inputs(config: Any, size: Size) -> dict[str, Any]:
    layers = config.num_layers + config.num_single_layers
    return {
        **_tokens(config, size, size.height, size.width),
        "text_encoder_layers": [torch.randn(size.batch, size.text, config.text_encoder_dim) for _ in range(layers)],
    }


BRIA = ModelSpec(
    class_name="BriaTransformer2DModel",
    modules=MODULES,
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=128,
)
BRIA_FIBO = ModelSpec(
    class_name="BriaFiboTransformer2DModel",
    modules=MODULES,
    conditioning=("encoder_hidden_states", "text_encoder_layers"),
    inputs=_fibo_inputs,
    text=3000,  # the most that the pipeline takes: it pads to the longest prompt only, but its prompts are long
)
