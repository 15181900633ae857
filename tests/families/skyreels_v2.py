from typing import Any

from families import VIDEO, VIDEO_OF_IMAGE, Family
from families.wan import WAN
from relcache import Size


def _forced(inputs: dict[str, Any]) -> dict[str, Any]:
    frames = inputs["hidden_states"].shape[2]
    return inputs | {"timestep": inputs["timestep"][:, None].repeat(1, frames), "enable_diffusion_forcing": True}


FAMILIES = [
    Family("SkyReelsV2Transformer3DModel", WAN, units=2 * 3, size=VIDEO),
    Family(
        "SkyReelsV2Transformer3DModel",
        WAN | {"num_frame_per_block": 2},
        units=2 * 3,
        size=Size(batch=2, height=4, width=6, frames=4, text=5),
        alter=_forced,
        variant="forcing",
    ),
    Family(
        "SkyReelsV2Transformer3DModel",
        WAN | {"in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 24},
        units=2 * 3,
        size=VIDEO_OF_IMAGE,
        variant="image",
    ),
]
