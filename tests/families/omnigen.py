from families import Family

FAMILY = Family(
    "OmniGenTransformer2DModel",
    {
        "in_channels": 4,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "num_layers": 2,
        "pad_token_id": 0,
        "vocab_size": 20,
        "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
        "pos_embed_max_size": 8,
        "time_step_dim": 16,
    },
    units=2 * 2,
)
