"""Quality at equal measured time: means with bootstrap intervals, and curves interpolated to the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 2000, 0.95
SEED = 20_260_000


class Interval(NamedTuple):
    """A mean over samples, and its bootstrap interval at 95 %."""

    mean: float
    least: float
    most: float

    def parts_from(self, other: Interval) -> bool:
        """Whether the two intervals have no number in common."""
        return self.least > other.most or self.most < other.least


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of `values` (n,), NaNs left out, and its percentile bootstrap interval.

    The draws depend on the number of values only, so that one table always has the same intervals.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(SEED).integers(0, len(known), (DRAWS, len(known)))
    means = known[drawn].mean(1)
    least, most = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(known.mean()), float(least), float(most))


@dataclass(frozen=True)
class Point:
    """One run of a contestant: its time as a share of full compute's, and the quality of each sample, (n,)."""

    share: float
    values: np.ndarray


def at_time(share: float, curve: Sequence[Point]) -> np.ndarray | None:
    """Return the quality of each sample (n,) that a contestant has within a time.

    It is the better one in the mean of two: the curve at that time, linear between its points, and the best point that
    takes no longer. None before its fastest point and after its slowest one: there nothing is known.
    """
    points = sorted(curve, key=lambda point: point.share)
    if not points or not points[0].share <= share <= points[-1].share:
        return None
    within = [point.values for point in points if point.share <= share]
    if points[len(within) - 1].share < share:
        left, right = points[len(within) - 1], points[len(within)]
        weight = (share - left.share) / (right.share - left.share)
        within.append((1 - weight) * left.values + weight * right.values)
    return max(within, key=np.nanmean)


@dataclass(frozen=True)
class Duel:
    """A contestant within the time that the default takes with a number of full steps, by one quality.

    Attributes:
        value: the contestant's quality.
        lead: the default's quality less the contestant's, over the same samples.
        parted: whether the intervals of both qualities have no number in common.
    """

    value: Interval
    lead: Interval
    parted: bool


def duel(own: Point, curve: Sequence[Point]) -> Duel | None:
    """Return a contestant at the time of `own`; None if its curve does not reach it."""
    values = at_time(own.share, curve)
    if values is None:
        return None
    value = interval(values)
    return Duel(value, interval(own.values - values), interval(own.values).parts_from(value))
