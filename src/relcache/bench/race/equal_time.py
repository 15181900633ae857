"""Quality at equal measured time: means with bootstrap intervals, and curves interpolated to the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

DRAWS, LEVEL = 2000, 0.95
SEED = 20_260_000


class Interval(NamedTuple):
    """A mean over samples, and its bootstrap interval at 95 %."""

    mean: float
    least: float
    most: float

    @property
    def leaves_out_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.least > 0 or self.most < 0


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Return the mean of `values` (n,), NaNs left out, and its percentile bootstrap interval.

    The draws depend on the number of values only, so that one table always has the same intervals.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan)
    return _percentiles(float(known.mean()), known[_drawn(len(known))].mean(1))


def _drawn(count: int, seed: int = SEED) -> np.ndarray:
    """Return the numbers of the samples in each draw, (DRAWS, count)."""
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def _percentiles(mean: float, means: np.ndarray) -> Interval:
    least, most = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(least), float(most))


@dataclass(frozen=True)
class Point:
    """One run of a contestant.

    Attributes:
        shares: the time of each batch as a share of full compute's.
        values: the quality of each sample, (n,).
    """

    shares: Sequence[float]
    values: np.ndarray

    @property
    def share(self) -> float:
        """The median over batches."""
        return float(np.median(self.shares))

    @cached_property
    def drawn_shares(self) -> np.ndarray:
        """Return the share in each draw of batches, (DRAWS,); the draws are the run's own, as its noise is."""
        seed = SEED + int.from_bytes(np.float64(self.share).tobytes(), "little") % 2**31
        return np.median(np.asarray(self.shares)[_drawn(len(self.shares), seed)], 1)

    @cached_property
    def drawn_means(self) -> np.ndarray:
        """Return the mean quality in each draw of samples, (DRAWS,): the same samples for all contestants."""
        return np.nanmean(self.values[_drawn(len(self.values))], 1)


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


def _drawn_at_time(shares: np.ndarray, curve: Sequence[Point]) -> np.ndarray:
    """Return a contestant's mean quality within the time `shares` of each draw, (DRAWS,), as `at_time` has it.

    In a draw in which the curve does not reach that time its nearest end counts.
    """
    times = np.stack([point.drawn_shares for point in curve])
    means = np.stack([point.drawn_means for point in curve])
    order = np.argsort(times, 0)
    times, means = np.take_along_axis(times, order, 0), np.take_along_axis(means, order, 0)
    left = np.clip((times <= shares).sum(0) - 1, 0, len(curve) - 1)
    right, draw = np.minimum(left + 1, len(curve) - 1), np.arange(len(shares))
    length = times[right, draw] - times[left, draw]
    weight = np.clip((shares - times[left, draw]) / np.where(length > 0, length, 1.0), 0.0, 1.0)
    between = (1 - weight) * means[left, draw] + weight * means[right, draw]
    return np.maximum(between, np.maximum.accumulate(means, 0)[left, draw])


@dataclass(frozen=True)
class Duel:
    """A contestant within the time that the default takes with a number of full steps, by one quality.

    Attributes:
        value: the contestant's quality.
        lead: the default's quality less the contestant's, over the same samples.
        parted: whether the lead's interval leaves out 0.
    """

    value: Interval
    lead: Interval
    parted: bool


def duel(own: Point, curve: Sequence[Point]) -> Duel | None:
    """Return a contestant at the time of `own`; None if its curve does not reach it.

    The intervals are over the samples, the same for both, and over the times of batches.
    """
    values = at_time(own.share, curve)
    if values is None:
        return None
    theirs = _drawn_at_time(own.drawn_shares, curve)
    lead = _percentiles(float(np.nanmean(own.values - values)), own.drawn_means - theirs)
    return Duel(_percentiles(float(np.nanmean(values)), theirs), lead, lead.leaves_out_zero)
