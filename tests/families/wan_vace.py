from families import VIDEO, Family
from families.wan import WAN

FAMILY = Family(
    "WanVACETransformer3DModel",
    WAN | {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 6},
    units=2 * 3 + 3 * 3,
    size=VIDEO,
)
