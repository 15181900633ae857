"""FLUX.2 (Black Forest Labs, 2025): double blocks with joint attention, then single blocks of one fused module."""

from relcache.models.inputs import call, filled, grid_ids, packed, text, where
from relcache.models.spec import ModelSpec, joint

FLUX2 = ModelSpec(
    class_name="Flux2Transformer2DModel",
    modules=(
        joint("transformer_blocks.*.attn"),
        "transformer_blocks.*.ff",
        "transformer_blocks.*.ff_context",
        "single_transformer_blocks.*.attn",
    ),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=packed("in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        timestep=filled(0.5),
        img_ids=lambda config, size: grid_ids(1, size.height // 2, size.width // 2, 1),
        txt_ids=lambda config, size: grid_ids(1, 1, 1, size.text),
        guidance=where("guidance_embeds", filled(4.0)),
    ),
    text=512,
)
