from families import Family
from families.wan import WAN
from relcache import Size

FAMILY = Family(
    "ChronoEditTransformer3DModel",
    WAN | {"in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 24},
    units=2 * 3,
    # attention takes all tokens but the last 512 for those of the image
    size=Size(batch=2, height=4, width=6, frames=2, text=512),
)
