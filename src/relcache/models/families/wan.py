"""Wan 2.1 and 2.2 (Alibaba, arXiv 2503.20314): self-attention, cross-attention and feed-forward of each block.

Wan 2.2 has two experts, one for the noisy and one for the later steps; each is a separate model.
"""

from relcache.models.inputs import Recipe, call, filled, random, text, video, where
from relcache.models.spec import ModelSpec

ARGUMENTS: dict[str, Recipe] = {
    "hidden_states": video("in_channels"),
    "timestep": filled(500),
    "encoder_hidden_states": text("text_dim"),
    "encoder_hidden_states_image": where("image_dim", random("batch", 257, "image_dim")),
}

WAN = ModelSpec(
    class_name="WanTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image"),
    inputs=call(**ARGUMENTS),
    text=512,
    pipelines=("WanPipeline",),
)
