"""LongCat-AudioDiT (Meituan, arXiv 2603.29339), speech: attention, cross-attention and feed-forward of each block.

Latent audio lies along `width`.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    inputs = {
        "hidden_states": torch.randn(size.batch, size.width, config.latent_dim),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.dit_text_dim),
        "encoder_attention_mask": torch.ones(size.batch, size.text, dtype=torch.bool),
        "timestep": torch.full((size.batch,), 0.5),
        "attention_mask": torch.ones(size.batch, size.width, dtype=torch.bool),
    }
    if config.use_latent_condition:
        inputs["latent_cond"] = torch.zeros(size.batch, size.width, config.latent_dim)
    return inputs


LONGCAT_AUDIO = ModelSpec(
    class_name="LongCatAudioDiTTransformer",
    modules=("blocks.*.self_attn", "blocks.*.cross_attn?", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_attention_mask"),
    time_runs=1,
    inputs=_inputs,
    text=512,
)
