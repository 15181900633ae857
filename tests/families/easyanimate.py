from families import VIDEO, Family

FAMILIES = [
    Family(
        "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": in_channels,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 2,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "add_norm_text_encoder": True,
            "text_embed_dim": 12,
        },
        units=2 * 3,
        size=VIDEO,
        variant=variant,
    )
    for variant, in_channels in {"text": 4, "image": 9}.items()
]
