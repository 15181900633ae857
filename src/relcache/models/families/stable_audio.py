"""Stable Audio Open (Stability AI, arXiv 2407.14358): attention, cross-attention and feed-forward of each block.

The length of latent audio is `width`.
"""

from relcache.models.inputs import call, filled, pair, random, text
from relcache.models.spec import ModelSpec

_angles = (
    lambda config, size: size.width + 1,  # the first token holds the duration and the timestep
    lambda config, size: config.attention_head_dim // 2,
)

STABLE_AUDIO = ModelSpec(
    class_name="StableAudioDiTModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states", "global_hidden_states"),
    inputs=call(
        hidden_states=random("batch", "in_channels", "width"),
        timestep=filled(0.5, 1),
        encoder_hidden_states=text("cross_attention_input_dim"),
        global_hidden_states=random("batch", 1, "global_states_input_dim"),
        rotary_embedding=pair(filled(1.0, *_angles), filled(0.0, *_angles)),
    ),
    text=130,
)
