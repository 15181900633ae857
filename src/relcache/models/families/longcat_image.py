"""LongCat-Image (Meituan, 2025): double blocks with joint attention, then single blocks."""

from dataclasses import replace

import torch

from relcache.models.families.ovis_image import ARGUMENTS, OVIS_IMAGE
from relcache.models.inputs import call, packed_ids

LONGCAT_IMAGE = replace(
    OVIS_IMAGE,
    class_name="LongCatImageTransformer2DModel",
    inputs=call(
        **ARGUMENTS
        | {"img_ids": lambda config, size: packed_ids(config, size) + torch.tensor([1.0, size.text, size.text])}
    ),
    text=512,
)
