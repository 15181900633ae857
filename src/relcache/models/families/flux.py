"""FLUX.1 (Black Forest Labs, 2024): double blocks with joint attention, then single blocks."""

from relcache.models.inputs import call, filled, packed, packed_ids, random, text, where
from relcache.models.spec import ModelSpec, joint, parallel

DOUBLE_AND_SINGLE = (
    joint("transformer_blocks.*.attn"),
    "transformer_blocks.*.ff",
    "transformer_blocks.*.ff_context",
    parallel("single_transformer_blocks.*", ("proj_mlp", "attn"), "proj_out"),
)

FLUX = ModelSpec(
    class_name="FluxTransformer2DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=call(
        hidden_states=packed("in_channels"),
        encoder_hidden_states=text("joint_attention_dim"),
        pooled_projections=random("batch", "pooled_projection_dim"),
        timestep=filled(0.5),
        img_ids=packed_ids,
        txt_ids=filled(0.0, "text", 3),
        guidance=where("guidance_embeds", filled(3.5)),
    ),
    text=512,
    pipelines=(
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxControlNetPipeline",
        "FluxKontextPipeline",
        "FluxFillPipeline",
        "FluxControlPipeline",
    ),
)
