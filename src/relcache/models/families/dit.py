"""DiT: class-conditional transformer (arXiv 2212.09748), attention and feed-forward of each block."""

from relcache.models.inputs import call, filled, image
from relcache.models.spec import ModelSpec

DIT = ModelSpec(
    class_name="DiTTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    conditioning=("class_labels",),
    inputs=call(hidden_states=image("in_channels"), timestep=filled(500), class_labels=filled(0)),
    pipelines=("DiTPipeline",),
)
