from families import Family

FAMILY = Family(
    "ZImageTransformer2DModel",
    {
        "in_channels": 4,
        "dim": 24,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 10,
        "axes_dims": [4, 4, 4],
        "axes_lens": [64, 16, 16],
    },
    units=1 * 2 + 2 * 2,
)
