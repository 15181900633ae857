"""Bytes that tensors hold, whoever holds them: found among all objects that are alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def live_bytes() -> int:
    """Bytes of all tensors that are alive; memory that several share counts once."""
    gc.collect()
    return sum(_storages().values())


class Scale:
    """Weighs the tensors made since it was entered; those that share memory with older ones weigh nothing.

    Until it is left, older objects are kept out of the collector's sight: to look at all objects of a process takes
    longer than many a denoising step.
    """

    def __enter__(self) -> Scale:
        gc.collect()
        self._older = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter)]  # not to be freed
        self._places = set(_storages())
        gc.freeze()
        return self

    def __exit__(self, *_: Any) -> None:
        gc.unfreeze()
        self._older.clear()

    def weigh(self) -> int:
        """Bytes of the tensors made since, as far as they are alive."""
        gc.collect()
        return sum(size for place, size in _storages().items() if place not in self._places)


@contextmanager
def weighed(model: nn.Module, calls: int, scale: Scale) -> Iterator[list[int]]:
    """Bytes that tensors hold more after `calls` calls of `model` than before the first: one number, once known."""
    weights: list[int] = []
    seen = 0

    def before(*_: Any) -> None:
        if not weights:
            weights.append(scale.weigh())

    def after(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == calls:
            held.append(scale.weigh() - weights[0])

    held: list[int] = []
    hooks = [model.register_forward_pre_hook(before, prepend=True), model.register_forward_hook(after)]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


def _storages() -> dict[int, int]:
    """Bytes of the storages of all tensors that are alive, by their places in memory."""
    storages = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, nn.Parameter) and not value.is_meta:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages
