"""Sees the sample that a scheduler hands on after each update, and may put another in its place.

Knows schedulers by their interface; of methods and plans nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from relcache.correctors.sampler import sample_of
from relcache.engine.patch import Patch


class Updates:
    """How many updates there were."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def between_updates(scheduler: Any, between: Callable[[int, Tensor], Tensor | None]) -> Iterator[Updates]:
    """Call `between(update, sample)` with the sample that each update of `scheduler` returns; they count from 0.

    What `between` returns is written into the sample, None leaves it as it is. Enter it inside of `relcache.enable`,
    whose correction it is then outside of.
    """
    patch, updates = Patch(), Updates()

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        sample = sample_of(result)
        if sample is None:
            raise ValueError(f"{type(scheduler).__name__}.step returned no sample")
        other = between(updates.count, sample)
        updates.count += 1
        if other is not None:
            sample.copy_(other)
        return result

    patch.swap(scheduler, "step", step)
    try:
        yield updates
    finally:
        patch.restore()
