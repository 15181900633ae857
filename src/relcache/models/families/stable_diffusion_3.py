"""Stable Diffusion 3 and 3.5 (Stability AI, arXiv 2403.03206): joint attention, self-attention, feed-forwards.

Only 3.5 Medium has the second attention; the last block has no feed-forward for the text.
"""

from relcache.models.inputs import call, filled, image, random, text
from relcache.models.spec import ModelSpec, joint

STABLE_DIFFUSION_3 = ModelSpec(
    class_name="SD3Transformer2DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.attn2?",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
    ),
    conditioning=("encoder_hidden_states", "pooled_projections", "skip_layers"),
    inputs=call(
        hidden_states=image("in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        pooled_projections=random("batch", "pooled_projection_dim"),
        timestep=filled(500.0),
    ),
    text=77 + 256,  # CLIP's and T5's
    pipelines=("StableDiffusion3Pipeline",),
)
