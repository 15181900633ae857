from families import Family
from relcache import Size

FAMILY = Family(
    "AllegroTransformer3DModel",
    {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "cross_attention_dim": 24,
        "sample_height": 4,
        "sample_width": 6,
        "sample_frames": 3,
        "caption_channels": 12,
    },
    units=2 * 3,
    size=Size(batch=2, height=6, width=8, frames=3, text=5),
)
