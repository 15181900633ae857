from families import Family

FAMILY = Family(
    "QwenImage21Transformer2DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "context_in_dim": 12,
        "axes_dims_rope": (4, 6, 6),
    },
    units=2 * 2,
)
