from families import Family
from relcache import Size

FAMILY = Family(
    "Kandinsky6SRTransformer3DModel",
    {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "time_dim": 16,
        "patch_size": (1, 1, 1),
        "model_dim": 32,
        "ff_dim": 48,
        "num_visual_blocks": 2,
        "axes_dims": (4, 6, 6),
        "nabla_window": (1, 1, 1),
    },
    units=2 * 2,
    size=Size(batch=2, height=8, width=16, frames=2, text=0),
)
