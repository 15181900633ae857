"""CogView3-Plus and CogView4 (Zhipu AI, arXiv 2403.05121): joint attention of each block, and feed-forward."""

from relcache.models.inputs import call, filled, image, text
from relcache.models.spec import ModelSpec, Part, joint

_inputs = call(
    hidden_states=image("in_channels"),
    encoder_hidden_states=text("text_embed_dim"),
    timestep=filled(500.0),
    original_size=filled(lambda config, size: 8.0 * size.height, "batch", 2),
    target_size=filled(lambda config, size: 8.0 * size.width, "batch", 2),
    crop_coords=filled(0.0, "batch", 2),
)

COGVIEW3_PLUS = ModelSpec(
    class_name="CogView3PlusTransformer2DModel",
    modules=(joint("transformer_blocks.*.attn1"), "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=224,
)

COGVIEW4 = ModelSpec(
    class_name="CogView4Transformer2DModel",
    # One feed-forward serves the image and then the text.
    modules=(joint("transformer_blocks.*.attn1"), Part("transformer_blocks.*.ff", calls=2)),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=1024,  # at most: prompts are padded to a multiple of 16
)
