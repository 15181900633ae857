from families import VIDEO, Family

FAMILY = Family(
    "MochiTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "text_embed_dim": 16,
        "time_embed_dim": 8,
        "max_sequence_length": 5,
    },
    units=3 * 3 - 1,
    size=VIDEO,
)
