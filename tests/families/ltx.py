from families import VIDEO, Family

FAMILY = Family(
    "LTXVideoTransformer3DModel",
    {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "num_layers": 2,
        "caption_channels": 12,
    },
    units=2 * 3,
    size=VIDEO,
)
