from families import Family
from relcache import Size

FAMILY = Family(
    "DiTTransformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "sample_size": 6,
        "num_embeds_ada_norm": 10,
    },
    units=3 * 2,
    size=Size(batch=2, height=6, width=6),
)
