from families import Family
from relcache import Size

FAMILY = Family(
    "HunyuanVideoFramepackTransformer3DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": 12,
        "pooled_projection_dim": 10,
        "rope_axes_dim": (4, 6, 6),
        "has_image_proj": True,
        "image_proj_dim": 6,
        "has_clean_x_embedder": True,
    },
    units=2 * 3 + 2,
    size=Size(batch=3, height=8, width=8, frames=4, text=5),
)
