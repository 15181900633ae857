from families import VIDEO, Family

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 2,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": 5,
}

FAMILIES = [
    Family("CogVideoXTransformer3DModel", CONFIG | config, units=2 * 2, size=VIDEO, variant=variant)
    for variant, config in {
        "1": {},
        "1.5": {
            "use_rotary_positional_embeddings": True,
            "patch_size_t": 2,
            "patch_bias": False,
            "in_channels": 8,
            "ofs_embed_dim": 8,
        },
    }.items()
]
