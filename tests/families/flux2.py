from families import Family
from families.flux import FLUX

FAMILY = Family(
    "Flux2Transformer2DModel",
    FLUX | {"timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)},
    units=2 * 3 + 2,
)
