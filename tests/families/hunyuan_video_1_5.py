from families import VIDEO, Family

CONFIG = {
    "in_channels": 9,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 12,
    "text_embed_2_dim": 10,
    "image_embed_dim": 6,
    "rope_axes_dim": (4, 6, 6),
}

FAMILIES = [
    Family("HunyuanVideo15Transformer3DModel", CONFIG | config, units=2 * 3, size=VIDEO, variant=variant)
    for variant, config in {"text": {"task_type": "t2v"}, "image": {"task_type": "i2v", "use_meanflow": True}}.items()
]
