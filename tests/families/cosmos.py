from families import VIDEO, Family

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 12,
    "adaln_lora_dim": 4,
    "max_size": (4, 8, 8),
    "concat_padding_mask": False,  # diffusers resizes the mask with torchvision, which the tests do without
}

FAMILIES = [
    Family("CosmosTransformer3DModel", CONFIG | config, units=2 * 3, size=VIDEO, variant=variant)
    for variant, config in {
        "text": {},
        "image": {
            "in_channels": 5,
            "extra_pos_embed_type": None,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 14,
            "encoder_hidden_states_channels": 12,
            "img_context_dim_in": 6,
            "img_context_num_tokens": 7,
            "img_context_dim_out": 32,
        },
    }.items()
]
