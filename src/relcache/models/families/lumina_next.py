"""Lumina-Next (Alpha-VLLM, arXiv 2406.18583): self- and cross-attention of a block share their output projection and
are one unit; then the feed-forward."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, grid_ids, parallel


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    channels = config.hidden_size // config.num_attention_heads // 4
    frequencies = 10000 ** (-torch.arange(channels) / channels)
    # The pipeline gives the rotations of a grid as large as any; the transformer takes the corner that it needs.
    angles = (grid_ids(384, 384)[:, None] * frequencies[:, None]).reshape(384, 384, -1)
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.cross_attention_dim),
        "encoder_mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


LUMINA_NEXT = ModelSpec(
    class_name="LuminaNextDiT2DModel",
    modules=(parallel("layers.*", ("attn1", "attn2"), "attn2.to_out.0"), "layers.*.feed_forward"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=_inputs,
    text=256,
)
