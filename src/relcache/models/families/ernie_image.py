"""ERNIE-Image (Baidu): attention and feed-forward of each block over image and text."""

from collections.abc import Mapping
from typing import Any

import torch

from relcache.models.padding import as_long_as
from relcache.models.spec import ModelSpec, Part, Size


def _valid(arguments: Mapping[str, Any], tokens: int) -> torch.Tensor:
    """The picture, then the text with its padding."""
    return as_long_as(arguments["text_lens"], arguments["text_bth"].shape[1], tokens)


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
    padding=(("layers*:*", _valid),),
    inputs=_inputs,
    text=256,  # as long as the prompt, which the pipeline rewrites at length
)
