"""DiT: class-conditional transformer (arXiv 2212.09748), attention and feed-forward of each block."""

from relcache.models.base import ModelSpec

DIT = ModelSpec(
    class_name="DiTTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    conditioning=("class_labels",),
)
