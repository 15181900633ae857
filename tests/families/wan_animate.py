from families import VIDEO_OF_IMAGE, Family
from families.wan import WAN

FAMILY = Family(
    "WanAnimateTransformer3DModel",
    WAN
    | {
        "in_channels": 12,
        "latent_channels": 4,
        "num_layers": 4,
        "image_dim": 10,
        "added_kv_proj_dim": 24,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    },
    units=4 * 3 + 2,
    size=VIDEO_OF_IMAGE,
)
