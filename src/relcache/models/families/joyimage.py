"""JoyImage Edit and Edit Plus (JD): joint attention of each block, and one feed-forward a stream."""

from typing import Any

import torch

from relcache.models.spec import ModelSpec, Size, joint

_MODULES = (joint("double_blocks.*.attn"), "double_blocks.*.img_mlp", "double_blocks.*.txt_mlp")
_PICTURES = 2  # the one to be made, and the one that is edited
_TEXT = 1024  # a picture of 1024 x 1024 as the text encoder sees it; the pipelines neither pad nor cut short prompts


def _edit_inputs(config: Any, size: Size) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(size.batch, _PICTURES, config.in_channels, size.frames, size.height, size.width),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
    }


def _edit_plus_inputs(config: Any, size: Size) -> dict[str, Any]:
    patch = config.patch_size
    grid = (size.frames // patch[0], size.height // patch[1], size.width // patch[2])
    patches = _PICTURES * grid[0] * grid[1] * grid[2]
    return {
        "hidden_states": torch.randn(size.batch, patches, config.in_channels, *patch),
        "timestep": torch.full((size.batch,), 500.0),
        "encoder_hidden_states": torch.randn(size.batch, size.text, config.text_dim),
        "encoder_hidden_states_mask": torch.ones(size.batch, size.text, dtype=torch.long),
        "shape_list": [[grid] * _PICTURES] * size.batch,
    }


JOYIMAGE_EDIT = ModelSpec(
    class_name="JoyImageEditTransformer3DModel",
    modules=_MODULES,
    conditioning=("encoder_hidden_states",),
    inputs=_edit_inputs,
    text=_TEXT,
)

JOYIMAGE_EDIT_PLUS = ModelSpec(
    class_name="JoyImageEditPlusTransformer3DModel",
    modules=_MODULES,
    conditioning=("encoder_hidden_states", "encoder_hidden_states_mask"),
    inputs=_edit_plus_inputs,
    text=_TEXT,
)
