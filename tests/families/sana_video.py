from families import VIDEO, Family

FAMILY = Family(
    "SanaVideoTransformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 10,
        "sample_size": 8,
        "rope_max_seq_len": 32,
    },
    units=2 * 3,
    size=VIDEO,
)
