"""Ideogram 4 (Ideogram): attention and feed-forward of each block over text and image.

A separate model, which reads no text, computes the unguided branch.
"""

from collections.abc import Mapping
from typing import Any

import torch

from relcache.models.inputs import Size, packed_ids
from relcache.models.spec import ModelSpec


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    text_ids = torch.arange(size.text)[:, None].expand(-1, 3)
    image_ids = packed_ids(config, size).long() + 65536  # the pipeline shifts them away from the text's
    tokens = (size.batch, len(text_ids) + len(image_ids))
    roles = torch.cat([torch.full((len(text_ids),), 3), torch.full((len(image_ids),), 2)])
    return {
        "hidden_states": torch.randn(*tokens, config.in_channels),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(*tokens, config.llm_features_dim),
        "position_ids": torch.cat([text_ids, image_ids]).repeat(size.batch, 1, 1),
        "segment_ids": torch.ones(tokens, dtype=torch.long),
        "indicator": roles.repeat(size.batch, 1),
    }


def _valid(arguments: Mapping[str, Any], tokens: int) -> torch.Tensor:
    """Return the tokens that count: the role of padding is negative."""
    return arguments["indicator"] >= 0


IDEOGRAM4 = ModelSpec(
    class_name="Ideogram4Transformer2DModel",
    modules=("layers.*.attention", "layers.*.feed_forward"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    padding=(("layers*:*", _valid),),
    inputs=_inputs,
    text=2048,
)
