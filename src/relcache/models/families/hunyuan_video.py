"""HunyuanVideo (Tencent, arXiv 2412.03603): double blocks with joint attention, then single blocks."""

from relcache.models.families.flux import DOUBLE_AND_SINGLE
from relcache.models.inputs import call, filled, random, text, video, where
from relcache.models.spec import ModelSpec

HUNYUAN_VIDEO = ModelSpec(
    class_name="HunyuanVideoTransformer3DModel",
    modules=DOUBLE_AND_SINGLE,
    conditioning=("encoder_hidden_states", "pooled_projections"),
    inputs=call(
        hidden_states=video("in_channels"),
        timestep=filled(500),
        encoder_hidden_states=text("text_embed_dim"),
        encoder_attention_mask=filled(True, "batch", "text"),
        pooled_projections=random("batch", "pooled_projection_dim"),
        guidance=where("guidance_embeds", filled(6000.0)),
    ),
    text=256,
    pipelines=("HunyuanVideoPipeline",),
)
