"""Recipes for the arguments of an example call of a transformer, from the model's config and a `Size`.

A `Recipe` is a function of config and size, the name of a field of `Size` or of the config, or a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """Size of a call of a transformer: samples, height, width and frames of the latents, tokens of text."""

    batch: int = 1
    height: int = 8
    width: int = 8
    frames: int = 1
    text: int = 16


Inputs = Callable[[Any, Size], dict[str, Any]]
Recipe = Callable[[Any, Size], Any] | str | int | float | tuple[float, ...]


def evaluate(recipe: Recipe | None, config: Any, size: Size) -> Any:
    """Return the value of `recipe` for a model's config and a size."""
    if isinstance(recipe, str):
        return getattr(size if hasattr(size, recipe) else config, recipe)
    return recipe(config, size) if callable(recipe) else recipe


def call(**arguments: Recipe) -> Inputs:
    """Return a function that makes `arguments` in their order, without those that are None."""

    def inputs(config: Any, size: Size) -> dict[str, Any]:
        values = {name: evaluate(recipe, config, size) for name, recipe in arguments.items()}
        return {name: value for name, value in values.items() if value is not None}

    return inputs


def where(condition: Recipe, recipe: Recipe, otherwise: Recipe | None = None) -> Recipe:
    """Make `recipe` if `condition` is true, else `otherwise`."""
    return lambda config, size: evaluate(recipe if evaluate(condition, config, size) else otherwise, config, size)


def several(count: Recipe, recipe: Recipe) -> Recipe:
    """Make a list of `count` values."""
    return lambda config, size: [evaluate(recipe, config, size) for _ in range(evaluate(count, config, size))]


def pair(first: Recipe, second: Recipe) -> Recipe:
    """Make a tuple of two values."""
    return lambda config, size: (evaluate(first, config, size), evaluate(second, config, size))


def random(*shape: Recipe) -> Recipe:
    """Make random features of `shape`, float32."""
    return lambda config, size: torch.randn([evaluate(length, config, size) for length in shape])


def filled(value: Recipe, *shape: Recipe) -> Recipe:
    """Make a tensor of one number, by default (batch,): float32 of a float, int64 of an int, bool of a bool."""
    return lambda config, size: torch.full(
        [evaluate(length, config, size) for length in shape or ("batch",)], evaluate(value, config, size)
    )


def image(channels: Recipe) -> Recipe:
    """Make latents of an image: (batch, channels, height, width), float32."""
    return random("batch", channels, "height", "width")


def video(channels: Recipe) -> Recipe:
    """Make latents of a video: (batch, channels, frames, height, width), float32."""
    return random("batch", channels, "frames", "height", "width")


def packed(channels: Recipe) -> Recipe:
    """Make latents of an image as `packed_tokens`: (batch, tokens, channels), float32."""
    return random("batch", packed_tokens, channels)


def text(channels: Recipe) -> Recipe:
    """Make features of a text: (batch, text, channels), float32."""
    return random("batch", "text", channels)


def rotation(*shape: Recipe) -> Recipe:
    """Make the cosines and the sines of random angles: two tensors of `shape`, float32."""

    def cosines_and_sines(config: Any, size: Size) -> tuple[Tensor, Tensor]:
        angles = evaluate(random(*shape), config, size)
        return angles.cos(), angles.sin()

    return cosines_and_sines


def latent_cells(config: Any, size: Size) -> int:
    """Return the tokens of a video with one token for each latent."""
    return size.frames * size.height * size.width


def patches(config: Any, size: Size) -> int:
    """Return the tokens of an image: one for `config.patch_size` x `config.patch_size` latents."""
    return (size.height // config.patch_size) * (size.width // config.patch_size)


def packed_tokens(config: Any, size: Size) -> int:
    """Return the tokens of an image if a pipeline packs 2 x 2 latents into one token."""
    return (size.height // 2) * (size.width // 2)


def packed_ids(config: Any, size: Size) -> Tensor:
    """Return frame, row and column of each of the `packed_tokens`: (tokens, 3), float32."""
    return grid_ids(1, size.height // 2, size.width // 2)


def grid_ids(*sizes: int) -> Tensor:
    """Return the coordinates of each cell of a grid, the last axis moving fastest: (cells, len(sizes)), float32."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).float()
