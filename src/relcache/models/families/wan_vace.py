"""Wan VACE (Alibaba, arXiv 2503.07598): the control blocks, which also read the noisy sample, then Wan's blocks."""

from relcache.models.inputs import call, filled, text, video
from relcache.models.spec import ModelSpec

WAN_VACE = ModelSpec(
    class_name="WanVACETransformer3DModel",
    modules=(
        "vace_blocks.*.attn1",
        "vace_blocks.*.attn2",
        "vace_blocks.*.ffn",
        "blocks.*.attn1",
        "blocks.*.attn2",
        "blocks.*.ffn",
    ),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=call(
        hidden_states=video("in_channels"),
        timestep=filled(500),
        encoder_hidden_states=text("text_dim"),
        control_hidden_states=video("vace_in_channels"),
    ),
    text=512,
)
