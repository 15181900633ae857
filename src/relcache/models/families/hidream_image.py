"""HiDream-I1 (HiDream.ai, arXiv 2505.22705): double blocks with joint attention, then single blocks.

The feed-forwards of the picture are mixtures of experts, each of which is one unit.
"""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    layers = max(config.llama_layers) + 1  # the text encoder's, each block reads one
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timesteps": torch.full((size.batch,), 500.0),
        "encoder_hidden_states_t5": torch.randn(size.batch, size.text, config.caption_channels[0]),
        "encoder_hidden_states_llama3": torch.randn(layers, size.batch, size.text, config.caption_channels[1]),
        "pooled_embeds": torch.randn(size.batch, config.text_emb_dim),
    }


HIDREAM_IMAGE = ModelSpec(
    class_name="HiDreamImageTransformer2DModel",
    modules=(
        joint("double_stream_blocks.*.block.attn1", "norm_hidden_states", "norm_encoder_hidden_states"),
        "double_stream_blocks.*.block.ff_i",
        "double_stream_blocks.*.block.ff_t",
        "single_stream_blocks.*.block.attn1",
        "single_stream_blocks.*.block.ff_i",
    ),
    conditioning=("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
    timestep="timesteps",
    inputs=_inputs,
    text=128,  # of each of the three texts that a double block reads
)
