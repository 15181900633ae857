from families import Family
from relcache import Size

FAMILY = Family(
    "MiniMaxMusic3Transformer1DModel",
    {
        "in_channels": 4,
        "condition_dim": 12,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ff_inner_dim": 48,
        "rotary_dim": 8,
        "fourier_embedding_dim": 16,
    },
    units=2 * 2,
    size=Size(batch=2, height=1, width=12),
)
