from families import Family

FAMILY = Family(
    "HiDreamImageTransformer2DModel",
    {
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": [12, 10],
        "text_emb_dim": 8,
        "num_routed_experts": 3,
        "num_activated_experts": 2,
        "axes_dims_rope": (8, 4, 4),
        "max_resolution": (8, 8),
        "llama_layers": [0, 1, 2, 2],
    },
    units=2 * 3 + 2 * 2,
    batch_axis={"encoder_hidden_states_llama3": 1},
)
