"""Lumina-Next (Alpha-VLLM, arXiv 2406.18583): self- and cross-attention of a block share their output projection and
are one unit; then the feed-forward."""

from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, grid_ids, image, text
from relcache.models.spec import ModelSpec, parallel


def _rotation(config: Any, size: Size) -> torch.Tensor:
    """Return the pipeline's rotations for the largest grid; the transformer takes the corner that it needs."""
    channels = config.hidden_size // config.num_attention_heads // 4
    frequencies = 10000 ** (-torch.arange(channels) / channels)
    angles = (grid_ids(384, 384)[:, None] * frequencies[:, None]).reshape(384, 384, -1)
    return torch.polar(torch.ones_like(angles), angles)


LUMINA_NEXT = ModelSpec(
    class_name="LuminaNextDiT2DModel",
    modules=(parallel("layers.*", ("attn1", "attn2"), "attn2.to_out.0"), "layers.*.feed_forward"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=call(
        hidden_states=image("in_channels"),
        timestep=filled(0.5),
        encoder_hidden_states=text("cross_attention_dim"),
        encoder_mask=filled(1, "batch", "text"),
        image_rotary_emb=_rotation,
        cross_attention_kwargs=lambda config, size: {},
    ),
    text=256,
)
