from families import Family

FAMILY = Family(
    "ErnieImageTransformer2DModel",
    {
        "hidden_size": 24,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "text_in_dim": 10,
        "rope_axes_dim": (4, 4, 4),
    },
    units=2 * 2,
)
