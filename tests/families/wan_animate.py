from families import Family
from relcache import Size

FAMILY = Family(
    "WanAnimateTransformer3DModel",
    {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 12,
        "latent_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 4,
        "rope_max_seq_len": 32,
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
    # attention finds the tokens of the image by there being 512 of text
    size=Size(batch=2, height=4, width=6, frames=3, text=512),
)
