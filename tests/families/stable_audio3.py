from families import Family
from relcache import Size

FAMILY = Family(
    "StableAudio3DiTModel",
    {
        "io_channels": 4,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "cond_token_dim": 12,
        "global_cond_dim": 10,
        "local_add_cond_dim": 5,
        "timestep_features_dim": 16,
        "ff_mult": 2.0,
        "num_memory_tokens": 3,
    },
    units=2 * 3,
    size=Size(batch=2, height=1, width=12, text=5),
)
