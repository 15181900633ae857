"""Helios (Peking University and ByteDance, arXiv 2603.04379): self-attention, cross-attention and feed-forward.

A video is made chunk by chunk; self-attention and feed-forward see the frames before it too.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    frames = min(size.frames, 9)  # latent frames in a chunk

    def latents(frames: int) -> torch.Tensor:
        return torch.randn(size.batch, config.in_channels, frames, size.height, size.width)

    return {
        "hidden_states": latents(frames),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
        # what came before: the first frame, and the last 16 + 2 + 1, the nearer the finer
        "latents_history_short": latents(2),
        "latents_history_mid": latents(2),
        "latents_history_long": latents(16),
        "indices_latents_history_short": torch.tensor([[0, 19]]),
        "indices_latents_history_mid": torch.arange(17, 19)[None],
        "indices_latents_history_long": torch.arange(1, 17)[None],
        "indices_hidden_states": torch.arange(20, 20 + frames)[None],
    }


HELIOS = ModelSpec(
    class_name="HeliosTransformer3DModel",
    modules=("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"),
    conditioning=("encoder_hidden_states",),
    inputs=_inputs,
    text=512,
)
