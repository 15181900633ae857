from families import VIDEO, Family

FAMILY = Family(
    "WanAnimate2Transformer3DModel",
    {
        "text_len": 6,
        "in_dim": 12,
        "dim": 24,
        "ffn_dim": 48,
        "freq_dim": 32,
        "text_dim": 12,
        "out_dim": 4,
        "num_heads": 2,
        "num_layers": 2,
    },
    units=2 * 3,
    size=VIDEO,
)
