from families import Family
from relcache import Size

_TEXT_TO_VIDEO = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}

FAMILIES = [
    Family(
        "WanTransformer3DModel", _TEXT_TO_VIDEO, units=2 * 3, size=Size(batch=2, height=4, width=6, frames=3, text=5)
    ),
    Family(
        "WanTransformer3DModel",
        _TEXT_TO_VIDEO | {"in_channels": 12, "image_dim": 10, "added_kv_proj_dim": 32},
        units=2 * 3,
        # attention finds the tokens of the image by there being 512 of text
        size=Size(batch=2, height=4, width=6, frames=3, text=512),
        variant="image",
    ),
]
