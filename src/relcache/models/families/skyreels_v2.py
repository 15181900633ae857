"""SkyReels-V2 (Skywork, arXiv 2504.13074): Wan 2.1; diffusion-forcing models give each frame its own timestep."""

from dataclasses import replace

from relcache.models.families.wan import ARGUMENTS, WAN
from relcache.models.inputs import Recipe, call, filled, where

_forcing: dict[str, Recipe] = {
    "timestep": where("inject_sample_info", filled(500, "batch", "frames"), filled(500)),
    "enable_diffusion_forcing": where("inject_sample_info", True),
    # 0 means 16 frames a second, 1 any other number
    "fps": where("inject_sample_info", lambda config, size: [1] * size.batch),
}
SKYREELS_V2 = replace(WAN, class_name="SkyReelsV2Transformer3DModel", inputs=call(**ARGUMENTS | _forcing), pipelines=())
