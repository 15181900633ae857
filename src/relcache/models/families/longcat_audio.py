"""LongCat-AudioDiT (Meituan, arXiv 2603.29339), speech: attention, cross-attention and feed-forward of each block.

The length of latent audio is `width`.
"""

from relcache.models.inputs import call, filled, random, text, where
from relcache.models.spec import ModelSpec

LONGCAT_AUDIO = ModelSpec(
    class_name="LongCatAudioDiTTransformer",
    modules=("blocks.*.self_attn", "blocks.*.cross_attn?", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_attention_mask"),
    time_runs=1,
    inputs=call(
        hidden_states=random("batch", "width", "latent_dim"),
        encoder_hidden_states=text("dit_text_dim"),
        encoder_attention_mask=filled(True, "batch", "text"),
        timestep=filled(0.5),
        attention_mask=filled(True, "batch", "width"),
        latent_cond=where("use_latent_condition", filled(0.0, "batch", "width", "latent_dim")),
    ),
    text=512,
)
