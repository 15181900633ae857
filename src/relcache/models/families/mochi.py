"""Mochi 1 (Genmo, 2024): joint attention and the feed-forwards of video and text; the last block has none for the text.

Its scheduler's timesteps rise.
"""

from relcache.models.inputs import call, filled, text, video
from relcache.models.spec import ModelSpec, joint

MOCHI = ModelSpec(
    class_name="MochiTransformer3DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff", "transformer_blocks.*.ff_context"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=call(
        hidden_states=video("in_channels"),
        encoder_hidden_states=text("text_embed_dim"),
        timestep=filled(500.0),
        encoder_attention_mask=filled(True, "batch", "text"),
    ),
    text=256,
)
