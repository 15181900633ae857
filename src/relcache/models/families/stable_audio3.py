"""Stable Audio 3 (Stability AI): differential attention, cross-attention and feed-forward of each block.

The length of latent audio is `width`.
"""

from relcache.models.inputs import call, filled, random, text
from relcache.models.spec import ModelSpec

STABLE_AUDIO3 = ModelSpec(
    class_name="StableAudio3DiTModel",
    modules=("transformer_blocks.*.self_attn", "transformer_blocks.*.cross_attn", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "global_hidden_states"),
    inputs=call(
        hidden_states=random("batch", "io_channels", "width"),
        timestep=filled(0.5),
        encoder_hidden_states=text("cond_token_dim"),
        encoder_attention_mask=filled(True, "batch", "text"),
        global_hidden_states=random("batch", "global_cond_dim"),
    ),
    text=257,
)
