"""Always: every step is full."""

from __future__ import annotations

from dataclasses import dataclass

from relcache.schedules.base import Schedule


@dataclass(frozen=True)
class Always(Schedule):
    """Makes every step full: the baseline of comparisons, with the same report."""

    def wants_full(self, state: None, step: int, error: float | None) -> bool:
        return True
