from families import VIDEO, Family

CONFIG = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_audio_dim": 3,
    "out_audio_dim": 3,
    "in_text_dim": 12,
    "in_text_dim2": 10,
    "time_dim": 16,
    "patch_size": (1, 2, 2),
    "model_dim": 32,
    "model_dim_a": 24,
    "ff_dim": 48,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
    "axes_dims_a": (4, 4, 4),
}

FAMILIES = [
    Family("Kandinsky6Transformer3DModel", CONFIG, units=2 * 8, size=VIDEO),
    Family(
        "Kandinsky6Transformer3DModel",
        # Rotary angles of video and sound are only taken together where their heads are equally wide.
        {**CONFIG, "axes_dims_a": (4, 6, 6), "model_dim_a": 48, "ca_rope": True, "cross_gates": True,
         "fix_modulation": True},
        units=2 * 8,
        size=VIDEO,
        variant="as-released",
    ),
]  # fmt: skip
