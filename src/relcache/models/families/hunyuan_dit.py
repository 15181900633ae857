"""Hunyuan-DiT (Tencent, arXiv 2405.08748): self-attention, cross-attention and feed-forward of each block.

The projections of the long skip connections replace the residual stream, so every step computes them.
"""

from relcache.models.inputs import call, filled, image, pair, patches, random
from relcache.models.spec import ModelSpec

HUNYUAN_DIT = ModelSpec(
    class_name="HunyuanDiT2DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ff"),
    conditioning=("encoder_hidden_states", "text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5"),
    inputs=call(
        hidden_states=image("in_channels"),
        timestep=filled(500.0),
        # the config fixes the numbers of text tokens
        encoder_hidden_states=random("batch", "text_len", "cross_attention_dim"),
        text_embedding_mask=filled(1, "batch", "text_len"),
        encoder_hidden_states_t5=random("batch", "text_len_t5", "cross_attention_dim_t5"),
        text_embedding_mask_t5=filled(1, "batch", "text_len_t5"),
        image_meta_size=filled(1024.0, "batch", 6),
        style=filled(0),
        image_rotary_emb=pair(filled(1.0, patches, "attention_head_dim"), filled(0.0, patches, "attention_head_dim")),
    ),
    text=77 + 256,  # of the two encoders
)
