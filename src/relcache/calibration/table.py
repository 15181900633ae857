"""The cost of a gap by its end and length, and the cheapest plan. Pure arithmetic."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST_ERROR = 1e-30


@dataclass(frozen=True)
class Errors:
    """Errors measured on requests of `steps` steps: squared L2 norms, means over the samples.

    Attributes:
        steps: number of steps.
        gaps: error in the sample after a gap, by the gap's length and by the full step that ends it.
        first: the same for the first gap, by the full step that ends it.
        tails: error of the final sample if all steps after the last full step are cached, by that full step.
        gains: growth factor of an error in the sample after a step until the final sample, by step.
        history: number of full steps at the beginning of every plan; the first gap follows them.
    """

    steps: int
    gaps: Mapping[int, Mapping[int, float]]
    first: Mapping[int, float]
    tails: Mapping[int, float]
    gains: Mapping[int, float]
    history: int = 1

    def cost(self, start: int, end: int) -> float:
        """Return the error that the gap between two full steps causes in the final sample."""
        if end == start + 1:
            return 0.0
        is_first = start == self.history - 1 and end in self.first
        error = self.first[end] if is_first else self._of_length(end - start, end)
        return error * _between(self.gains, end)

    def tail(self, last: int) -> float:
        """Return the error that the cached steps after the last full step cause in the final sample."""
        return 0.0 if last == self.steps - 1 else _between(self.tails, last)

    def _of_length(self, length: int, end: int) -> float:
        """Interpolate or extrapolate the error of a gap as a power of its length."""
        return _between({known: _between(ends, end) for known, ends in self.gaps.items()}, length, powers=True)

    def cheapest(self, full_steps: int) -> tuple[int, ...]:
        """Return the plan of exactly `full_steps` full steps with the least sum of costs, as a shortest path."""
        count = min(full_steps, self.steps)
        least: list[dict[int, tuple[float, int]]] = [{self.history - 1: (0.0, -1)}]
        for _ in range(self.history, count):
            before, now = least[-1], {}
            for end in range(self.history, self.steps):
                sums = [(cost + self.cost(start, end), start) for start, (cost, _) in before.items() if start < end]
                if sums:
                    now[end] = min(sums)
            least.append(now)
        last = min(least[-1], key=lambda end: least[-1][end][0] + self.tail(end))
        plan = [last]
        for known in reversed(least[1:]):
            plan.append(known[plan[-1]][1])
        return (*range(self.history - 1), *reversed(plan))


def _between(known: Mapping[int, float], at: int, powers: bool = False) -> float:
    """Interpolate the logarithm of `known` linearly at `at`; beyond its ends return the nearest value.

    With `powers`, it is linear in log(at), and extrapolated beyond the ends.
    """
    if at in known:
        return known[at]
    points = sorted(known)
    index, last = bisect_left(points, at), len(points) - 1
    if last == 0 or (not powers and index in (0, last + 1)):
        return known[points[min(index, last)]]
    low, high = points[max(min(index - 1, last - 1), 0)], points[min(max(index, 1), last)]
    scale = math.log if powers else float
    share = (scale(at) - scale(low)) / (scale(high) - scale(low))
    ends = [math.log(max(known[point], LEAST_ERROR)) for point in (low, high)]
    return math.exp(ends[0] + share * (ends[1] - ends[0]))


def neighbours(plan: Sequence[int], steps: int, history: int = 1) -> list[tuple[int, ...]]:
    """Return the plans that move one full step, or all full steps from one on, by 1 to 3 steps.

    The first `history` full steps stay.
    """
    plans: dict[tuple[int, ...], None] = {}
    for first in range(history, len(plan)):
        for shift in (-1, 1, -2, 2, -3, 3):
            for end in (first + 1, len(plan)):
                other = [step + shift * (first <= index < end) for index, step in enumerate(plan)]
                if other[-1] < steps and all(a < b for a, b in pairwise(other)):
                    plans[tuple(other)] = None
    return list(plans)
