from families import Family
from families.flux import FLUX

CONFIG = FLUX | {"cond_in_channels": 8, "timestep_channels": 32, "axes_dims_rope": (4, 4, 4, 4)}

FAMILIES = [
    Family("Flux3Transformer2DModel", CONFIG, units=2 * 2 + 2 * 2),
    Family("Flux3Transformer2DModel", {**CONFIG, "flow_map": True}, units=2 * 2 + 2 * 2, variant="distilled"),
]
