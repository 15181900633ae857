from families import Family
from families.flux import FLUX

FAMILIES = [
    Family("BriaTransformer2DModel", FLUX, units=2 * 3 + 2),
    Family("BriaFiboTransformer2DModel", FLUX | {"text_encoder_dim": 10}, units=2 * 3 + 2),
]
