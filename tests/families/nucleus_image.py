from families import Family

FAMILY = Family(
    "NucleusMoEImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "joint_attention_dim": 12,
        "axes_dims_rope": (4, 6, 6),
        "dense_moe_strategy": "leave_first_block_dense",
        "num_experts": 4,
        "moe_intermediate_dim": 16,
        "capacity_factors": 2.0,
    },
    units=3 * 2,
)
