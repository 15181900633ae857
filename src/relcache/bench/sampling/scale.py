"""Measure the memory of all live tensors."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def live_bytes() -> int:
    """Return the bytes of all tensors that are alive; shared memory counts once."""
    gc.collect()
    return sum(_storages().values())


class Scale:
    """Weigh the tensors made since it was entered; tensors that share memory with older tensors weigh nothing.

    Until it exits, it hides older objects from the garbage collector, because visiting them all can take longer than
    a denoising step.
    """

    def __enter__(self) -> Scale:
        gc.collect()
        self._older = [value for value in gc.get_objects() if type(value) in (Tensor, nn.Parameter)]  # keeps them alive
        self._addresses = set(_storages())
        gc.freeze()
        return self

    def __exit__(self, *_: Any) -> None:
        gc.unfreeze()
        self._older.clear()

    def weigh(self) -> int:
        """Return the bytes of the newer tensors that are alive."""
        gc.collect()
        return sum(size for address, size in _storages().items() if address not in self._addresses)


@dataclass
class Weight:
    """Bytes gained, None if not weighed; and the seconds of weighing, before the first call and after."""

    held: int | None = None
    before: float = 0.0
    seconds: float = 0.0


@contextmanager
def weighed(model: nn.Module, calls: int, scale: Scale) -> Iterator[Weight]:
    """Weigh the bytes gained from before the first call of `model` to after `calls` calls."""
    weight = Weight()
    before: list[int] = []
    count = 0

    def begin(*_: Any) -> None:
        if not before:
            began = time.perf_counter()
            before.append(scale.weigh())
            weight.before = time.perf_counter() - began

    def end(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == calls:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            weight.held = scale.weigh() - before[0]
            weight.seconds = time.perf_counter() - began

    hooks = [model.register_forward_pre_hook(begin, prepend=True), model.register_forward_hook(end)]
    try:
        yield weight
    finally:
        for hook in hooks:
            hook.remove()


def _storages() -> dict[int, int]:
    """Return the bytes of all live tensors' storages by their addresses."""
    storages = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, nn.Parameter) and not value.is_meta:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages
