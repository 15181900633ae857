"""PixArt-α and PixArt-Σ (Huawei, arXiv 2310.00426 and 2403.04692): both attentions and feed-forward of each block."""

from relcache.models.inputs import call, filled, image, text
from relcache.models.spec import ModelSpec

PIXART = ModelSpec(
    class_name="PixArtTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=image("in_channels"),
        encoder_hidden_states=text("caption_channels"),
        encoder_attention_mask=filled(1, "batch", "text"),
        timestep=filled(500),
        # read by PixArt-α at 1024 pixels only
        added_cond_kwargs=call(resolution=filled(1024.0, "batch", 2), aspect_ratio=filled(1.0, "batch", 1)),
    ),
    text=300,
    pipelines=("PixArtSigmaPipeline",),
)
