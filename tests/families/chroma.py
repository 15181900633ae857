from families import Family
from families.flux import FLUX

FAMILY = Family(
    "ChromaTransformer2DModel",
    FLUX | {"approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 1},
    units=2 * 3 + 2,
)
