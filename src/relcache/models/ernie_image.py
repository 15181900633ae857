"""ERNIE-Image (Baidu): attention and feed-forward of each block over image and text."""

from typing import Any

import torch

from relcache.models.base import ModelSpec, Part, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 500.0),
        "text_bth": torch.randn(size.batch, size.text, config.text_in_dim),
        "text_lens": torch.full((size.batch,), size.text),
    }


ERNIE_IMAGE = ModelSpec(
    class_name="ErnieImageTransformer2DModel",
    modules=("layers.*.self_attention", Part("layers.*.mlp", layout="tokens first")),
    conditioning=("text_bth",),
    inputs=_inputs,
    text=256,  # as long as the prompt, which the pipeline rewrites at length
)
