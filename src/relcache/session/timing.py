"""Measure the cost of a cached step, relative to a full one, in the first request of each size."""

from __future__ import annotations

from collections.abc import Hashable

from relcache.engine.state import Request

ENOUGH = 2  # cached steps that are timed
MOST_SIZES = 64


class Timing:
    """Costs of a cached step by the size of a request's first call."""

    def __init__(self) -> None:
        self._costs: dict[Hashable, float] = {}

    def cost(self, size: Hashable) -> float | None:
        """Return the time of a cached step relative to a full one; None if unknown."""
        return self._costs.get(size)

    def measure(self, request: Request, size: Hashable) -> float | None:
        """Return the cost at the beginning of a step, once it is known; else None. Waits for the device then.

        The first full step is a warm-up, and counts only until there is a second one.
        """
        if size in self._costs:
            return self._costs[size]
        full = [step for step in range(request.step) if step in request.full_steps]
        cached = [step for step in range(request.step) if step not in request.full_steps]
        times = request.clock.begun() if len(cached) >= ENOUGH and full else []
        if not times:
            return None
        if len(self._costs) >= MOST_SIZES:
            self._costs.pop(next(iter(self._costs)))
        self._costs[size] = min(times[step] for step in cached) / min(times[step] for step in full[1:] or full)
        return self._costs[size]
