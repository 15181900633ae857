from families import Family
from relcache import Size

FAMILY = Family(
    "ChronoEditTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 12,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "rope_max_seq_len": 32,
        "image_dim": 10,
        "added_kv_proj_dim": 24,
    },
    units=2 * 3,
    # attention finds the tokens of the image by there being 512 of text
    size=Size(batch=2, height=4, width=6, frames=2, text=512),
)
