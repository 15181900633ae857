"""The timestep of a transformer's call; not every pipeline keeps its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from relcache.bench.rivals.base import known_spec

TRAIN_TIMESTEPS = 1000  # timesteps fall from here to 0


@contextmanager
def watched_timestep(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the timestep of the current call, from 1000 to 0.

    Some pipelines pass it as a fraction; then the first one is at most 1.
    """
    name, current, scale = known_spec(model).timestep, [float(TRAIN_TIMESTEPS)], list[int]()

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = float(kwargs[name].flatten()[0])
        if not scale:
            scale.append(TRAIN_TIMESTEPS if value <= 1 else 1)
        current[0] = value * scale[0]

    hook = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield lambda: current[0]
    finally:
        hook.remove()
