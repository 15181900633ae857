from families import VIDEO, Family

FAMILY = Family(
    "MotifVideoTransformer3DModel",
    {
        "in_channels": 9,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 4,
        "num_decoder_layers": 2,
        "text_embed_dim": 12,
        "rope_axes_dim": (4, 6, 6),
        "enable_text_cross_attention_dual": True,
        "enable_text_cross_attention_single": True,
    },
    units=2 * 4 + 4,
    size=VIDEO,
)
