from families import Family
from relcache import Size

CONFIG = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}
TWO_PICTURES = Size(batch=2, height=4, width=6, frames=2, text=5)
FAMILIES = [
    Family("QwenImageTransformer2DModel", CONFIG, units=2 * 3),
    Family("QwenImageTransformer2DModel", {**CONFIG, "zero_cond_t": True}, 2 * 3, TWO_PICTURES, variant="edit"),
    Family(
        "QwenImageTransformer2DModel",
        {**CONFIG, "use_additional_t_cond": True, "use_layer3d_rope": True},
        2 * 3,
        TWO_PICTURES,
        variant="layered",
    ),
]
