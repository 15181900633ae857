"""LTX-Video (Lightricks, arXiv 2501.00103): self-attention, cross-attention and feed-forward of each block."""

from relcache.models.inputs import call, filled, latent_cells, random, text
from relcache.models.spec import ModelSpec

LTX = ModelSpec(
    class_name="LTXVideoTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=random("batch", latent_cells, "in_channels"),
        encoder_hidden_states=text("caption_channels"),
        timestep=filled(500.0),
        encoder_attention_mask=filled(True, "batch", "text"),
        num_frames="frames",
        height="height",
        width="width",
        rope_interpolation_scale=(8 / 25, 32, 32),  # of the autoencoder; 25 frames a second
    ),
    text=128,
    pipelines=("LTXPipeline",),
)
