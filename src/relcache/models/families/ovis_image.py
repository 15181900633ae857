"""Ovis-Image (Alibaba, arXiv 2511.22982): double blocks with joint attention, then single blocks with a gated MLP."""

from typing import Any

import torch

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.inputs import Recipe, Size, call, filled, packed, packed_ids, text
from relcache.models.spec import ModelSpec


def _text_ids(config: Any, size: Size) -> torch.Tensor:
    positions = torch.arange(size.text).float()
    return torch.stack([torch.zeros(size.text), positions, positions], dim=1)


ARGUMENTS: dict[str, Recipe] = {
    "hidden_states": packed("in_channels"),
    "encoder_hidden_states": text("joint_attention_dim"),
    "timestep": filled(0.5),
    "img_ids": packed_ids,
    "txt_ids": _text_ids,
}

OVIS_IMAGE = ModelSpec(
    class_name="OvisImageTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states",),
    inputs=call(**ARGUMENTS),
    text=256,
)
