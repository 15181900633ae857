from families import Family

CONFIG = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "text_embed_dim": 12,
    "time_embed_dim": 16,
    "condition_dim": 4,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}
FAMILIES = [
    Family("CogView3PlusTransformer2DModel", CONFIG, units=2 * 2),
    Family("CogView4Transformer2DModel", {**CONFIG, "rope_axes_dim": (16, 16)}, units=2 * 3),
]
