"""SANA and SANA-Sprint (NVIDIA, arXiv 2410.10629 and 2503.09641): linear self-attention, cross-attention and the
convolutional feed-forward of each block."""

from relcache.models.inputs import call, filled, image, text, where
from relcache.models.spec import ModelSpec

SANA = ModelSpec(
    class_name="SanaTransformer2DModel",
    modules=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=image("in_channels"),
        encoder_hidden_states=text("caption_channels"),
        encoder_attention_mask=filled(1, "batch", "text"),
        timestep=filled(lambda config, size: 500 * config.timestep_scale),
        guidance=where("guidance_embeds", filled(lambda config, size: 4.5 * config.guidance_embeds_scale)),
    ),
    text=300,
)
