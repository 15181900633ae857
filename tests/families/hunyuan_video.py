from families import Family
from relcache import Size

FAMILY = Family(
    "HunyuanVideoTransformer3DModel",
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
        "guidance_embeds": True,
    },
    units=2 * 3 + 2,
    size=Size(batch=2, height=4, width=6, frames=3, text=5),
)
