from families import Family

CONFIG = {
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}

FAMILIES = [
    Family("BriaTransformer2DModel", CONFIG, units=2 * 3 + 2),
    Family("BriaFiboTransformer2DModel", {**CONFIG, "text_encoder_dim": 10}, units=2 * 3 + 2),
]
