"""Krea 2 (Krea): attention and feed-forward of each block over text and image."""

import torch

from relcache.models.inputs import call, filled, packed, packed_ids, random
from relcache.models.padding import masked_text
from relcache.models.spec import ModelSpec

KREA2 = ModelSpec(
    class_name="Krea2Transformer2DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    padding=(("transformer_blocks*:*", masked_text("encoder_attention_mask")),),
    inputs=call(
        hidden_states=packed("in_channels"),
        encoder_hidden_states=random("batch", "text", "num_text_layers", "text_hidden_dim"),
        timestep=filled(0.5),
        position_ids=lambda config, size: torch.cat([torch.zeros(size.text, 3), packed_ids(config, size)]),
        encoder_attention_mask=filled(True, "batch", "text"),
    ),
    text=512,
)
