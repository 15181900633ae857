"""LongCat-Image (Meituan, 2025): double blocks with joint attention, then single blocks."""

from dataclasses import replace
from typing import Any

import torch

from relcache.models.families.ovis_image import ARGUMENTS, OVIS_IMAGE
from relcache.models.inputs import Size, call, packed_ids


def _image_ids(config: Any, size: Size) -> torch.Tensor:
    return packed_ids(config, size) + torch.tensor([1.0, size.text, size.text])


LONGCAT_IMAGE = replace(
    OVIS_IMAGE,
    class_name="LongCatImageTransformer2DModel",
    inputs=call(**ARGUMENTS | {"img_ids": _image_ids}),
    text=512,
)
