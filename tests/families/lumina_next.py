from families import Family

FAMILY = Family(
    "LuminaNextDiT2DModel",
    {
        "sample_size": 8,
        "in_channels": 4,
        "hidden_size": 24,
        "num_layers": 2,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "multiple_of": 4,
        "cross_attention_dim": 10,
    },
    units=2 * 2,
)
