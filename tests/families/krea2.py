from families import Family

FAMILY = Family(
    "Krea2Transformer2DModel",
    {
        "in_channels": 16,
        "num_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "timestep_embed_dim": 16,
        "text_hidden_dim": 8,
        "num_text_layers": 3,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 16,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 4, 4),
    },
    units=2 * 2,
)
