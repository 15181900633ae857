"""What a gap costs, by where it ends and how long it is; and the cheapest plan. Pure arithmetic."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SMALLEST = 1e-30


@dataclass(frozen=True)
class Errors:
    """Measured on requests of `steps` steps, all squared norms, means over the samples.

    Attributes:
        steps: how many.
        gaps: by length, and by the full step that ends it: the error that a gap leaves in the sample after that step.
        first: by its end: that of the first gap.
        tails: by the last full step: the error of the final sample where all after it is cached.
        gains: by step: how many times an error in the sample after it is as large in the final one.
        history: how many steps at the beginning are full in any case; the first gap follows them.
    """

    steps: int
    gaps: Mapping[int, Mapping[int, float]]
    first: Mapping[int, float]
    tails: Mapping[int, float]
    gains: Mapping[int, float]
    history: int = 1

    def cost(self, start: int, end: int) -> float:
        """Error of the final sample by the gap between two full steps."""
        if end == start + 1:
            return 0.0
        table = self.first if start == self.history - 1 and end in self.first else None
        error = table[end] if table is not None else self._of_length(end - start, end)
        return error * _between(self.gains, end)

    def tail(self, last: int) -> float:
        """Error of the final sample by what is cached after the last full step."""
        return 0.0 if last == self.steps - 1 else _between(self.tails, last)

    def _of_length(self, length: int, end: int) -> float:
        """Between the lengths that were measured, and beyond them, as a power of the length."""
        return _between({known: _between(ends, end) for known, ends in self.gaps.items()}, length, powers=True)

    def cheapest(self, full_steps: int) -> tuple[int, ...]:
        """The plan of exactly so many full steps whose gaps and tail add up to the least.

        A shortest path: among plans of k full steps that end at step n, only the cheapest is extended.
        """
        count = min(full_steps, self.steps)
        least: list[dict[int, tuple[float, int]]] = [{self.history - 1: (0.0, -1)}]
        for _ in range(self.history, count):
            before, now = least[-1], {}
            for end in range(self.history, self.steps):
                ways = [(sum_ + self.cost(start, end), start) for start, (sum_, _) in before.items() if start < end]
                if ways:
                    now[end] = min(ways)
            least.append(now)
        last = min(least[-1], key=lambda end: least[-1][end][0] + self.tail(end))
        plan = [last]
        for known in reversed(least[1:]):
            plan.append(known[plan[-1]][1])
        return (*range(self.history - 1), *reversed(plan))


def _between(known: Mapping[int, float], at: int, powers: bool = False) -> float:
    """The value at `at`, its logarithm linear between the two nearest that are known; with `powers` in log(at), and
    beyond the ends as well. Without it the nearest end's."""
    places = sorted(known)
    if at in known:
        return known[at]
    index = bisect_left(places, at)
    if len(places) == 1 or (not powers and index in (0, len(places))):
        return known[places[min(index, len(places) - 1)]]
    low, high = places[max(min(index - 1, len(places) - 2), 0)], places[min(max(index, 1), len(places) - 1)]
    where = (lambda place: math.log(place)) if powers else float
    share = (where(at) - where(low)) / (where(high) - where(low))
    ends = [math.log(max(known[place], SMALLEST)) for place in (low, high)]
    return math.exp(ends[0] + share * (ends[1] - ends[0]))


def neighbours(plan: Sequence[int], steps: int, history: int = 1) -> list[tuple[int, ...]]:
    """Plans that differ from `plan` by one full step, or by all from one on, which are 1 to 3 steps elsewhere.

    The first `history` full steps stay.
    """
    made: dict[tuple[int, ...], None] = {}
    for place in range(history, len(plan)):
        for shift in (-1, 1, -2, 2, -3, 3):
            for end in (place + 1, len(plan)):
                other = [step + shift * (place <= index < end) for index, step in enumerate(plan)]
                if other[-1] < steps and all(a < b for a, b in pairwise(other)):
                    made[tuple(other)] = None
    return list(made)
