"""Interval: make steps full at a fixed interval."""

from __future__ import annotations

from dataclasses import dataclass

from relcache.checks import check_whole
from relcache.schedules.base import Schedule, short_of_warmup


@dataclass(frozen=True)
class Interval(Schedule):
    """The first `warmup` steps are full, then steps `phase`, `phase + interval`, `phase + 2 interval`, …

    The default phase is the published one, `warmup - 1 + interval` (FORA, arXiv 2407.01425; TaylorSeer, 2503.06923).
    Warm-up 2 and interval 4 give 0, 1, 5, 9, …. diffusers' TaylorSeer hook gives 0, 1, 3, 7, 11, … instead: its first
    full step comes two steps after the warm-up, which is `phase=3` here.

    Raises:
        ValueError: the interval or the warm-up is below 1, or the phase is inside the warm-up.
    """

    interval: int
    warmup: int = 2
    phase: int | None = None

    def __post_init__(self) -> None:
        check_whole("the interval of Interval", self.interval, 1)
        check_whole("the warmup of Interval", self.warmup, 1)
        if self.phase is not None:
            what = f"the phase of Interval (its first full step after the warm-up of {self.warmup})"
            check_whole(what, self.phase, self.warmup)

    def remark(self, total_steps: int) -> str | None:
        return short_of_warmup(self.warmup, total_steps)

    def wants_full(self, state: None, step: int, error: float | None) -> bool:
        first = self.warmup - 1 + self.interval if self.phase is None else self.phase
        return step < self.warmup or (step >= first and (step - first) % self.interval == 0)
