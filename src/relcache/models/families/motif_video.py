"""Motif-Video (Motif Technologies): double blocks with joint attention, then single blocks; the last of them decode.

In some configurations the video attends to the text once more after the joint attention.
"""

from relcache.models.inputs import call, filled, text, video
from relcache.models.spec import ModelSpec, joint, parallel

MOTIF_VIDEO = ModelSpec(
    class_name="MotifVideoTransformer3DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.cross_attn?",
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
        parallel("single_transformer_blocks.*", ("proj_mlp", "attn", "cross_attn?"), "proj_out"),
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=video("in_channels"),
        timestep=filled(500.0),
        encoder_hidden_states=text("text_embed_dim"),
        encoder_attention_mask=filled(True, "batch", "text"),
    ),
    text=512,
)
