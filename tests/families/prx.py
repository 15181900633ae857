from families import Family

FAMILY = Family(
    "PRXTransformer2DModel",
    {
        "in_channels": 4,
        "context_in_dim": 10,
        "hidden_size": 16,
        "num_heads": 2,
        "depth": 2,
        "axes_dim": [4, 4],
        "resolution_embeds": True,
        "bottleneck_size": 8,
    },
    units=2 * 2,
)
