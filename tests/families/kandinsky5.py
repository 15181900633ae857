from families import VIDEO, Family

FAMILY = Family(
    "Kandinsky5Transformer3DModel",
    {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 12,
        "in_text_dim2": 10,
        "time_dim": 16,
        "patch_size": (1, 2, 2),
        "model_dim": 32,
        "ff_dim": 48,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (4, 6, 6),
        "visual_cond": True,
    },
    units=2 * 3,
    batch_axis={"visual_rope_pos": None},
    size=VIDEO,
)
