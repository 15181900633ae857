"""LongCat-Image (Meituan, 2025): double blocks with joint attention, then single blocks."""

from dataclasses import replace
from typing import Any

import torch

from relcache.models.families.ovis_image import OVIS_IMAGE, ovis_inputs
from relcache.models.spec import Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = ovis_inputs(config, size)
    inputs["img_ids"] = inputs["img_ids"] + torch.tensor([1.0, size.text, size.text])
    return inputs


LONGCAT_IMAGE = replace(OVIS_IMAGE, class_name="LongCatImageTransformer2DModel", inputs=_inputs, text=512)
