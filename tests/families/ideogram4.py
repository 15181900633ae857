from families import Family

FAMILY = Family(
    "Ideogram4Transformer2DModel",
    {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "adaln_dim": 8,
        "llm_features_dim": 12,
        "mrope_section": (2, 2, 2),
    },
    units=2 * 2,
)
