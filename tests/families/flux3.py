from families import Family

CONFIG = {
    "in_channels": 8,
    "cond_in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "timestep_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
}

FAMILIES = [
    Family("Flux3Transformer2DModel", CONFIG, units=2 * 2 + 2 * 2),
    Family("Flux3Transformer2DModel", {**CONFIG, "flow_map": True}, units=2 * 2 + 2 * 2, variant="distilled"),
]
