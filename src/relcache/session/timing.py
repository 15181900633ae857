"""Measure the cost of a cached step, relative to a full one, in the first request of each size."""

from __future__ import annotations

import time
from collections.abc import Hashable

import torch

from relcache.engine.state import Request

ENOUGH = 2  # cached steps that are timed
MOST_SIZES = 64


class Timing:
    """Costs of a cached step by the size of a request's first call. Measuring waits for the device at each step."""

    def __init__(self) -> None:
        self._costs: dict[Hashable, float] = {}

    def cost(self, size: Hashable) -> float | None:
        """Return the time of a cached step relative to a full one; None if unknown."""
        return self._costs.get(size)

    def begin_step(self, request: Request, size: Hashable, device: torch.device) -> float | None:
        """Begin a step of a request; return the cost once it is known, else None.

        The first full step is a warm-up, and counts only until there is a second one.
        """
        if size in self._costs:
            return self._costs[size]
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        request.step_began.append(time.perf_counter())
        times = [later - earlier for earlier, later in zip(request.step_began, request.step_began[1:], strict=False)]
        full = [seconds for step, seconds in enumerate(times) if step in request.full_steps]
        cached = [seconds for step, seconds in enumerate(times) if step not in request.full_steps]
        if len(cached) < ENOUGH or not full:
            return None
        if len(self._costs) >= MOST_SIZES:
            self._costs.pop(next(iter(self._costs)))
        self._costs[size] = min(cached) / min(full[1:] or full)
        return self._costs[size]
