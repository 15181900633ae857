from families import Family

FAMILY = Family(
    "PixArtTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "cross_attention_dim": 24,
        "caption_channels": 10,
        "sample_size": 8,
    },
    units=2 * 3,
)
