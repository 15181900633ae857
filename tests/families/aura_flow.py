from families import Family

FAMILY = Family(
    "AuraFlowTransformer2DModel",
    {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    },
    units=2 * 3 + 2 * 2,
)
