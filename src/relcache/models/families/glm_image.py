"""GLM-Image (Z.ai, 2026): joint attention of each block, and the feed-forward that serves image and text in turn."""

from relcache.models.inputs import call, filled, image, patches, text
from relcache.models.spec import ModelSpec, Part, joint

GLM_IMAGE = ModelSpec(
    class_name="GlmImageTransformer2DModel",
    modules=(joint("transformer_blocks.*.attn1"), Part("transformer_blocks.*.ff", calls=2)),
    conditioning=("encoder_hidden_states", "prior_token_id", "prior_token_drop"),
    inputs=call(
        hidden_states=image("in_channels"),
        encoder_hidden_states=text("text_embed_dim"),
        prior_token_id=filled(0, "batch", patches),
        prior_token_drop=filled(False, "batch", patches),
        timestep=filled(500.0),
        target_size=filled(1024.0, "batch", 2),
        crop_coords=filled(0.0, "batch", 2),
    ),
    text=256,  # the pipeline encodes only the prompt's words in quotes, byte by byte
)
