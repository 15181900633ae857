from families import VIDEO, Family

FAMILY = Family(
    "SanaWMTransformer3DModel",
    {
        "in_channels": 4,
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "softmax_every_n": 2,
        "linear_head_dim": 16,
        "caption_channels": 10,
        "mlp_ratio": 2.0,
        "chunk_plucker_channels": 8,
        "chunk_plucker_post_attn_blocks": 2,
    },
    units=2 * 3,
    size=VIDEO,
)
