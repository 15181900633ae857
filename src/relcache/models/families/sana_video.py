"""SANA-Video (NVIDIA, arXiv 2509.24695): linear self-attention, cross-attention and the convolutional feed-forward of
each block."""

from relcache.models.inputs import call, filled, text, video, where
from relcache.models.spec import ModelSpec

SANA_VIDEO = ModelSpec(
    class_name="SanaVideoTransformer3DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=video("in_channels"),
        encoder_hidden_states=text("caption_channels"),
        encoder_attention_mask=filled(1, "batch", "text"),
        timestep=filled(500.0),
        guidance=where("guidance_embeds", filled(lambda config, size: 6 * config.guidance_embeds_scale)),
    ),
    text=300,
)
