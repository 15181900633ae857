"""Read weights, with errors that name the file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is broken: {error}") from error


def load_into(module: nn.Module, path: Path) -> None:
    """Give `module` the weights of a safetensors file, as float32.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is broken, lacks a weight, or has a further one or one of another shape.
    """
    weights, wanted = load_weights(path), module.state_dict()
    for kind, names in (("lacks", wanted.keys() - weights.keys()), ("holds", weights.keys() - wanted.keys())):
        if names:
            right = f"the weight {min(names)}" if kind == "lacks" else f"{min(names)}, which is no weight of it"
            raise ValueError(f"{path} {kind} {right}: it is not of a {type(module).__name__} of this config")
    for name, value in weights.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{path}: {name} is {tuple(value.shape)}, expected {tuple(wanted[name].shape)}")
    module.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    )
