from families import VIDEO, Family

FAMILY = Family(
    "Cosmos3OmniTransformer",
    {
        "head_dim": 16,
        "hidden_size": 32,
        "intermediate_size": 48,
        "latent_channel": 4,
        "latent_patch_size": 2,
        "patch_latent_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "vocab_size": 20,
        "rope_axes_dim": (4, 2, 2),
    },
    units=2 * 3,
    size=VIDEO,
)
