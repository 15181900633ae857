from families import Family

CONFIG = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 12,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}
FAMILIES = [
    Family("JoyImageEditTransformer3DModel", CONFIG, units=2 * 3),
    Family("JoyImageEditTransformer3DModel", {**CONFIG, "rope_type": "mrope"}, units=2 * 3, variant="mrope"),
    Family("JoyImageEditPlusTransformer3DModel", CONFIG, units=2 * 3),
]
