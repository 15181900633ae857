"""OmniGen (BAAI, arXiv 2409.11340): attention and feed-forward over instruction, timestep and image in one sequence."""

from collections.abc import Mapping
from typing import Any

import torch

from relcache.models.inputs import Size, patches
from relcache.models.spec import ModelSpec


def _valid(arguments: Mapping[str, Any], tokens: int) -> torch.Tensor | None:
    """Return the tokens that count: the image's last token attends to all of them, and not to the padding."""
    mask = arguments.get("attention_mask")
    return None if mask is None else mask[:, -1] != 0


def _inputs(config: Any, size: Size) -> dict[str, Any]:
    image = patches(config, size)
    tokens = size.text + 1 + image  # the timestep is a token
    mask = torch.ones(tokens, tokens).tril()
    mask[-image:] = 1  # the instruction is causal, the image attends to the whole sequence
    return {
        "hidden_states": torch.randn(size.batch, config.in_channels, size.height, size.width),
        "timestep": torch.full((size.batch,), 0.5),
        "input_ids": torch.ones(size.batch, size.text, dtype=torch.long),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask.repeat(size.batch, 1, 1),
        "position_ids": torch.arange(tokens).repeat(size.batch, 1),
    }


OMNIGEN = ModelSpec(
    class_name="OmniGenTransformer2DModel",
    modules=("layers.*.self_attn", "layers.*.mlp"),
    conditioning=("input_ids", "input_img_latents"),
    time_runs=1,
    padding=(("layers*:*", _valid),),
    inputs=_inputs,
    text=128,  # about the negative prompt's length; shorter instructions are padded to it
)
