"""Wan-Animate 2 (Alibaba): self-attention, cross-attention and feed-forward of each block.

Before the first step the driving video is passed through the same blocks, to store keys and values for self-attention.
`kv_cache_mode` makes that call a branch of its own, which is computed in full.
"""

import math
from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, several, where
from relcache.models.spec import ModelSpec


class _NoCache:
    """Accept keys and values of any layer, and drop them."""

    def get(self, layer: int) -> "_NoCache":
        return self

    def store(self, key: torch.Tensor, value: torch.Tensor) -> None:
        pass


def _grid(config: Any, size: Size) -> tuple[int, int, int]:
    return _frames(config, size), size.height // config.patch_size[1], size.width // config.patch_size[2]


def _frames(config: Any, size: Size) -> int:
    """Return the latent frames: the reference image, then a segment of at most 81 video frames."""
    return min(size.frames, 21) + 1


WAN_ANIMATE_2 = ModelSpec(
    class_name="WanAnimate2Transformer3DModel",
    modules=("blocks.*.self_attn", "blocks.*.cross_attn", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image", "kv_cache_mode", "is_uncondtion"),
    inputs=call(
        hidden_states=several("batch", random("out_dim", _frames, "height", "width")),
        timestep=filled(500.0),
        encoder_hidden_states=several("batch", random("text", "text_dim")),
        condition_latents=several(
            "batch", random(lambda config, size: config.in_dim - config.out_dim, _frames, "height", "width")
        ),
        # Denoising steps use the other mode, which needs a filled cache; the features have the same size.
        kv_cache=lambda config, size: _NoCache(),
        kv_cache_mode=lambda config, size: "extract",
        seq_len=lambda config, size: math.prod(_grid(config, size)),
        offset_grid_sizes=lambda config, size: torch.tensor([_grid(config, size)]),
        encoder_hidden_states_image=where("use_img_emb", random("batch", 257, 1280)),
    ),
    text=512,
)
