from families import VIDEO, VIDEO_OF_IMAGE, Family

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
_TEXT_TO_VIDEO = WAN | {"attention_head_dim": 16}

FAMILIES = [
    Family("WanTransformer3DModel", _TEXT_TO_VIDEO, units=2 * 3, size=VIDEO),
    Family(
        "WanTransformer3DModel",
        _TEXT_TO_VIDEO | {"in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 32},
        units=2 * 3,
        size=VIDEO_OF_IMAGE,
        variant="image",
    ),
]
