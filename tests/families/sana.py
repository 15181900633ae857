from families import Family

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 10,
    "sample_size": 8,
}

FAMILIES = [
    Family("SanaTransformer2DModel", CONFIG, units=2 * 3),
    Family(
        "SanaTransformer2DModel",
        {**CONFIG, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads", "timestep_scale": 0.001},
        units=2 * 3,
        variant="sprint",
    ),
]
