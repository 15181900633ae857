"""Wan-Animate 2 (Alibaba): self-attention, cross-attention and feed-forward of each block.

Before the first step the driving video is passed through the same blocks, to store keys and values for self-attention.
`kv_cache_mode` tells that call apart: as a branch of its own it is computed in full.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


class _NoCache:
    """Takes keys and values of any layer, and drops them."""

    def get(self, layer: int) -> "_NoCache":
        return self

    def store(self, key: torch.Tensor, value: torch.Tensor) -> None:
        pass


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    # a longer video is made in segments of 81 frames; the reference image comes first, as a frame of its own
    frames = min(size.frames, 21) + 1
    grid = [frames, size.height // config.patch_size[1], size.width // config.patch_size[2]]
    inputs = {
        "hidden_states": [torch.randn(config.out_dim, frames, size.height, size.width) for _ in range(size.batch)],
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": [torch.randn(size.text, config.text_dim) for _ in range(size.batch)],
        "condition_latents": [
            torch.randn(config.in_dim - config.out_dim, frames, size.height, size.width) for _ in range(size.batch)
        ],
        # denoising steps are called in the other mode, which takes a filled cache; the cached features are as large
        "kv_cache": _NoCache(),
        "kv_cache_mode": "extract",
        "seq_len": grid[0] * grid[1] * grid[2],
        "offset_grid_sizes": torch.tensor([grid]),
    }
    if config.use_img_emb:
        inputs["encoder_hidden_states_image"] = torch.randn(size.batch, 257, 1280)
    return inputs


WAN_ANIMATE_2 = ModelSpec(
    class_name="WanAnimate2Transformer3DModel",
    modules=("blocks.*.self_attn", "blocks.*.cross_attn", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states", "encoder_hidden_states_image", "kv_cache_mode", "is_uncondtion"),
    inputs=_inputs,
    text=512,
)
