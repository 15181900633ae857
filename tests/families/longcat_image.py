from families import Family
from families.flux import FLUX

FAMILY = Family("LongCatImageTransformer2DModel", FLUX | {"pooled_projection_dim": 12}, units=2 * 3 + 2)
