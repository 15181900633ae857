"""MiniMax Music 3 (MiniMax): attention and feed-forward of each block, on windows of latent audio along `width`."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, parallel


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.width, config.condition_dim),  # one for each position
    }


MINIMAX_MUSIC3 = ModelSpec(
    class_name="MiniMaxMusic3Transformer1DModel",
    modules=("transformer_blocks.*.attn", parallel("transformer_blocks.*", ("ff_in",), "ff_out")),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=_inputs,
)
