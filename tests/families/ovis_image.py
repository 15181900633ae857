from families import Family
from families.flux import FLUX

FAMILY = Family("OvisImageTransformer2DModel", FLUX | {"out_channels": 8}, units=2 * 3 + 2)
