from families import VIDEO, Family

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 12,
    "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 6, 6),
    "guidance_embeds": True,
}

FAMILIES = [
    Family("HunyuanVideoTransformer3DModel", CONFIG | config, units=2 * 3 + 2, size=VIDEO, variant=variant)
    for variant, config in {
        "": {},
        "latent_concat": {"in_channels": 9, "image_condition_type": "latent_concat", "guidance_embeds": False},
        "token_replace": {"image_condition_type": "token_replace"},
    }.items()
]
