from families import Family

FLUX = {
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}

FAMILY = Family(
    "FluxTransformer2DModel", FLUX | {"pooled_projection_dim": 10, "guidance_embeds": True}, units=2 * 3 + 2
)
