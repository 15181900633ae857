"""AuraFlow (fal.ai, 2024): double blocks with joint attention, then single blocks."""

from relcache.models.inputs import call, filled, image, text
from relcache.models.spec import ModelSpec, joint

AURA_FLOW = ModelSpec(
    class_name="AuraFlowTransformer2DModel",
    modules=(
        joint("joint_transformer_blocks.*.attn"),
        "joint_transformer_blocks.*.ff",
        "joint_transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.attn",
        "single_transformer_blocks.*.ff",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=image("in_channels"), encoder_hidden_states=text("joint_attention_dim"), timestep=filled(0.5)
    ),
    text=256,
)
