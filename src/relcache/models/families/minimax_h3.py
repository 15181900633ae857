"""MiniMax-H3 (MiniMax): text, sound and video in one sequence; attention and feed-forward of each block.

The refiner of the text does not depend on the sample: every step computes it.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, grid_ids
from relcache.models.spec import ModelSpec


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    patch_frames, patch_height, patch_width = config.patch_size
    grid = (size.frames // patch_frames, size.height // patch_height, size.width // patch_width)
    video = grid[0] * grid[1] * grid[2]
    pictures = 17 * (size.frames - 2) / 5 + 5  # 17 pictures for 5 frames of latents
    audio = 2 * round(pictures / 24 * 40)  # two channels, 40 latents a second
    text, middle, end = size.text, size.text + audio, size.text + audio + video
    return {
        "hidden_states": torch.randn(size.batch, video, config.in_channels * patch_frames * patch_height * patch_width),
        "audio_hidden_states": torch.randn(size.batch, audio, config.audio_in_channels),
        "encoder_hidden_states": torch.randn(size.batch, text, config.text_dim),
        "timestep": torch.tensor([0.2, 0.4]),  # of the video, of the sound
        "timestep_indices": torch.cat([torch.zeros(text), torch.ones(audio), torch.zeros(video)]).long(),
        "token_tags": torch.cat([torch.ones(text), torch.full((audio,), 2.0), torch.zeros(video)]).long(),
        "position_ids": torch.cat([grid_ids(text, 1, 1), grid_ids(audio, 1, 1), grid_ids(*grid)]),
        "text_indices": torch.arange(text),
        "audio_indices": torch.arange(text, middle),
        "video_indices": torch.arange(middle, end),
    }


MINIMAX_H3 = ModelSpec(
    class_name="MiniMaxH3Transformer3DModel",
    modules=("transformer_blocks.*.attn", "transformer_blocks.*.ff"),
    conditioning=("encoder_hidden_states",),
    time_runs=1,
    inputs=_inputs,
    text=512,
)
