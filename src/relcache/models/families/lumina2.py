"""Lumina-Image 2.0 (Alpha-VLLM, arXiv 2503.21758): refiner of the noisy image, then blocks over text and image."""

from collections.abc import Mapping
from typing import Any

import torch

from relcache.models.padding import as_long_as
from relcache.models.spec import ModelSpec, Size


def _valid(arguments: Mapping[str, Any], tokens: int) -> torch.Tensor:
    """Text, the picture behind it, then padding."""
    lengths = arguments["encoder_attention_mask"].sum(1)
    return as_long_as(lengths, lengths.max(), tokens)


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.cap_feat_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.long),
    }


LUMINA2 = ModelSpec(
    class_name="Lumina2Transformer2DModel",
    modules=("noise_refiner.*.attn", "noise_refiner.*.feed_forward", "layers.*.attn", "layers.*.feed_forward"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    padding=(("layers*:*", _valid),),
    inputs=_inputs,
    text=256,  # at most: the transformer drops the padding
)
