"""Latte (arXiv 2401.03048): each spatial block attends within a frame, the next temporal block across frames."""

from relcache.models.inputs import call, filled, text, video
from relcache.models.spec import ModelSpec, Part

LATTE = ModelSpec(
    class_name="LatteTransformer3DModel",
    modules=(
        Part("transformer_blocks.*.attn1", layout="folded"),
        Part("transformer_blocks.*.attn2", layout="folded"),
        Part("transformer_blocks.*.ff", layout="folded"),
        Part("temporal_transformer_blocks.*.attn1", layout="folded"),
        Part("temporal_transformer_blocks.*.ff", layout="folded"),
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=video("in_channels"), timestep=filled(500), encoder_hidden_states=text("caption_channels")
    ),
    text=120,
)
