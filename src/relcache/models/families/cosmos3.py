"""Cosmos 3 (NVIDIA): text and video in one sequence without a batch, each with weights of its own.

The video attends to the whole sequence, the text to itself alone: the text's features are the same in every step.
"""

from typing import Any

import torch

from relcache.models.inputs import Size, grid_ids
from relcache.models.spec import ModelSpec, Part, joint


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    patch = config.latent_patch_size
    shape = (size.frames, -(-size.height // patch), -(-size.width // patch))
    video = grid_ids(*shape).T
    tokens = video.shape[1]
    indexes = torch.arange(size.text, size.text + tokens)
    offset = torch.tensor([[size.text + config.unified_3d_mrope_temporal_modality_margin], [0], [0]])
    return {  # the pipeline has one sample in a call
        "input_ids": torch.zeros(size.text, dtype=torch.long),
        "text_indexes": torch.arange(size.text),
        "position_ids": torch.cat([torch.arange(size.text).float().expand(3, -1), video + offset], dim=1),
        "und_len": size.text,
        "sequence_length": size.text + tokens,
        "vision_tokens": [torch.randn(1, config.latent_channel, size.frames, size.height, size.width)],
        "vision_token_shapes": [shape],
        "vision_sequence_indexes": indexes,
        "vision_mse_loss_indexes": indexes.clone(),
        "vision_timesteps": torch.full((tokens,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(size.frames)],
    }


COSMOS3 = ModelSpec(
    class_name="Cosmos3OmniTransformer",
    modules=(
        # The text never changes, so its error says nothing: the video's input forecasts both outputs.
        joint("layers.*.self_attn", "gen_seq", layout="packed"),
        Part("layers.*.mlp", layout="packed"),
        Part("layers.*.mlp_moe_gen", layout="packed"),
    ),
    conditioning=("input_ids",),
    timestep="vision_timesteps",
    sample="vision_tokens",
    inputs=_inputs,
    text=512,
)
