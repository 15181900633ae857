"""JoyImage Edit and Edit Plus (JD): joint attention of each block, and a feed-forward for each stream."""

from dataclasses import replace
from typing import Any

import torch

from relcache.models.inputs import Size, call, filled, random, text
from relcache.models.spec import ModelSpec, joint

_IMAGES = 2  # the new image and the edited image


def _grid(config: Any, size: Size) -> tuple[int, int, int]:
    frames, height, width = config.patch_size
    return size.frames // frames, size.height // height, size.width // width


def _patches(config: Any, size: Size) -> torch.Tensor:
    frames, height, width = _grid(config, size)
    return torch.randn(size.batch, _IMAGES * frames * height * width, config.in_channels, *config.patch_size)


JOYIMAGE_EDIT = ModelSpec(
    class_name="JoyImageEditTransformer3DModel",
    modules=(joint("double_blocks.*.attn"), "double_blocks.*.img_mlp", "double_blocks.*.txt_mlp"),
    conditioning=("encoder_hidden_states",),
    inputs=call(
        hidden_states=random("batch", _IMAGES, "in_channels", "frames", "height", "width"),
        timestep=filled(500.0),
        encoder_hidden_states=text("text_dim"),
    ),
    text=1024,  # the text encoder's tokens of an image of 1024 x 1024; the pipelines neither pad nor cut prompts
)

JOYIMAGE_EDIT_PLUS = replace(
    JOYIMAGE_EDIT,
    class_name="JoyImageEditPlusTransformer3DModel",
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=call(
        hidden_states=_patches,
        timestep=filled(500.0),
        encoder_hidden_states=text("text_dim"),
        encoder_hidden_states_mask=filled(1, "batch", "text"),
        shape_list=lambda config, size: [[_grid(config, size)] * _IMAGES] * size.batch,
    ),
)
