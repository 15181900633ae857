"""HunyuanVideo 1.5 (Tencent, 2025): double blocks with joint attention over video, text, glyphs and the image."""

from relcache.models.inputs import call, filled, random, text, video, where
from relcache.models.spec import ModelSpec, joint

GLYPH_TOKENS = 256
_image = ("batch", 729, "image_embed_dim")

HUNYUAN_VIDEO_1_5 = ModelSpec(
    class_name="HunyuanVideo15Transformer3DModel",
    modules=(joint("transformer_blocks.*.attn"), "transformer_blocks.*.ff", "transformer_blocks.*.ff_context"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_2"),
    inputs=call(
        hidden_states=video("in_channels"),
        timestep=filled(500.0),
        encoder_hidden_states=text("text_embed_dim"),
        encoder_attention_mask=filled(1.0, "batch", "text"),
        encoder_hidden_states_2=random("batch", GLYPH_TOKENS, "text_embed_2_dim"),
        encoder_attention_mask_2=filled(1.0, "batch", GLYPH_TOKENS),
        # From text alone the pipeline passes zeros, which the model masks but keeps in the sequence.
        image_embeds=where(lambda config, size: config.task_type == "t2v", filled(0.0, *_image), random(*_image)),
        timestep_r=where("use_meanflow", filled(480.0)),
    ),
    text=1000,
)
