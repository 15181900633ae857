from families import Family

CONFIG = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_projection_dim": 32,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
FAMILIES = [
    Family("SD3Transformer2DModel", CONFIG, units=3 * 3 - 1),
    Family(
        "SD3Transformer2DModel",
        {**CONFIG, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        units=3 * 3 - 1 + 2,
        variant="dual",
    ),
]
