from families import VIDEO, Family

FAMILY = Family(
    "HeliosTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "rope_dim": (4, 4, 4),
        "is_amplify_history": True,
    },
    units=2 * 3,
    size=VIDEO,
)
