"""Kandinsky 6 super-resolution (Sber): sparse self-attention and feed-forward of each block, on tiles, without text."""

from relcache.models.inputs import call, filled, random
from relcache.models.spec import ModelSpec

KANDINSKY6_SR = ModelSpec(
    class_name="Kandinsky6SRTransformer3DModel",
    modules=("visual_transformer_blocks.*.self_attention", "visual_transformer_blocks.*.feed_forward"),
    inputs=call(
        # the sample, an anchor and the mask of the anchor
        hidden_states=random("batch", "frames", "height", "width", lambda config, size: 2 * config.in_visual_dim + 1),
        timestep=filled(500.0),
    ),
)
