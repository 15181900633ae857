from families import Family

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "embedding_dim": 12,
    "num_embeddings": 7,
    "additional_embeddings": 4,
}

FAMILIES = [
    Family("PriorTransformer", CONFIG, units=2 * 2),
    Family(
        "PriorTransformer",
        {
            **CONFIG,
            "additional_embeddings": 0,
            "time_embed_act_fn": "gelu",
            "norm_in_type": "layer",
            "embedding_proj_norm_type": "layer",
            "encoder_hid_proj_type": None,
            "added_emb_type": None,
            "embedding_proj_dim": 10,
            "clip_embed_dim": 24,
        },
        units=2 * 2,
        variant="Shap-E",
    ),
]
