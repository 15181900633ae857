from families import Family
from relcache import Size

FAMILY = Family(
    "WanVACETransformer3DModel",
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 3,
        "rope_max_seq_len": 32,
        "vace_layers": [0, 2],
        "vace_in_channels": 6,
    },
    units=2 * 3 + 3 * 3,
    size=Size(batch=2, height=4, width=6, frames=3, text=5),
)
