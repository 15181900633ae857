"""SkyReels-V2 (Skywork, arXiv 2504.13074): Wan 2.1, whose diffusion-forcing models give each frame its own timestep."""

from dataclasses import replace
from typing import Any

import torch

from relcache.models.families.wan import WAN, wan_inputs
from relcache.models.inputs import Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = wan_inputs(config, size)
    if config.inject_sample_info:
        inputs["timestep"] = torch.full((size.batch, size.frames), 500)
        inputs["enable_diffusion_forcing"] = True
        inputs["fps"] = [1] * size.batch  # 0 stands for 16 frames a second, 1 for any other number
    return inputs


SKYREELS_V2 = replace(WAN, class_name="SkyReelsV2Transformer3DModel", inputs=_inputs, pipelines=())
