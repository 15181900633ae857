"""Read, and optionally replace, the sample that a scheduler returns from each update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from relcache.correctors.sampler import sample_of
from relcache.engine.patch import Patch


@dataclass
class Updates:
    """The number of updates so far."""

    count: int = 0


@contextmanager
def between_updates(scheduler: Any, between: Callable[[int, Tensor], Tensor | None]) -> Iterator[Updates]:
    """Call `between(update, sample)` after each update of `scheduler`; updates count from 0.

    A tensor that `between` returns is copied into the sample; None leaves it unchanged. Enter this context inside
    `relcache.enable`, so that it sees corrected samples.
    """
    patch, updates = Patch(), Updates()

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        sample = sample_of(result)
        if sample is None:
            raise ValueError(f"{type(scheduler).__name__}.step returned no sample")
        replacement = between(updates.count, sample)
        updates.count += 1
        if replacement is not None:
            sample.copy_(replacement)
        return result

    patch.swap(scheduler, "step", step)
    try:
        yield updates
    finally:
        patch.restore()
