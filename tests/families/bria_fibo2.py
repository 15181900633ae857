from families import Family

FAMILY = Family(
    "BriaFibo2Transformer2DModel",
    {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 2,
        "n_refiner_layers": 2,
        "n_heads": 2,
        "cap_feat_dim": 12,
        "injection_layer_ids": (1,),
        "perceiver_num_layers": 1,
        "min_num_gist_tokens": 4,
        "max_num_gist_tokens": 8,
        "gist_step": 2,
        "gist_min_text_len": 2,
        "gist_max_text_len": 8,
        "axes_dims": (4, 6, 6),
        "axes_lens": (16, 8, 8),
    },
    units=2 * 2 + 2 * 2 + 1,
)
