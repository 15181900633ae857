from families import Family

FAMILY = Family(
    "Lumina2Transformer2DModel",
    {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "multiple_of": 4,
        "axes_dim_rope": (4, 4, 4),
        "axes_lens": (32, 16, 16),
        "cap_feat_dim": 10,
    },
    units=1 * 2 + 2 * 2,
)
