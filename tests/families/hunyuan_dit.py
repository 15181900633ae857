from families import Family

FAMILY = Family(
    "HunyuanDiT2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "patch_size": 2,
        "sample_size": 8,
        "hidden_size": 32,
        "num_layers": 4,
        "cross_attention_dim": 12,
        "cross_attention_dim_t5": 16,
        "pooled_projection_dim": 8,
        "text_len": 3,
        "text_len_t5": 4,
    },
    units=4 * 3,
)
