from families import Family
from relcache import Size

FAMILY = Family(
    "Transformer2DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_vector_embeds": 11,
        "sample_size": 4,
        "cross_attention_dim": 12,
        "attention_bias": True,
        "activation_fn": "geglu-approximate",
        "norm_type": "ada_norm",
        "num_embeds_ada_norm": 24,
    },
    units=2 * 3,
    size=Size(batch=2, height=4, width=4, text=5),
)
