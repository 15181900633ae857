"""Accumulate the rescaled changes of the first block's modulated input, and make steps full by their sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from relcache.api import Handle
from relcache.forecasters.expansion import Expansion
from relcache.schedules import Schedule
from relcache.schedules.base import Setting


@dataclass
class Meter:
    """Sees the input of the first block's first module, which is modulated by the timestep.

    Attributes:
        first: the first input seen since the last decision, (rows, tokens, channels).
        latest: the last input seen.
        changes: the relative changes of the input in this request, from its second step on.
        known: the input whose change was computed last, and that change: decision and sum need it both.
    """

    first: Tensor | None = None
    latest: Tensor | None = None
    changes: list[float] = field(default_factory=list)
    known: tuple[Tensor, float] | None = None

    def see(self, features: Tensor) -> None:
        """Note an input, (rows, tokens, channels)."""
        self.latest = features.detach().clone()
        if self.first is None:
            self.first = self.latest

    def change(self, previous: Tensor | None) -> float:
        """Return the relative change of the latest input from `previous`, or from the first one seen."""
        before, now = self.first if previous is None else previous, self.latest
        assert before is not None
        assert now is not None
        if self.known is None or self.known[0] is not now:
            self.known = now, relative_change(before, now)
        return self.known[1]

    def watch(self, handle: Handle) -> None:
        """See all inputs that the gauges of an enabled model read; they are dropped with its session."""
        for gauge in handle._session.cache.gauges.values():
            setattr(gauge, "features", self._seeing(gauge.features))  # noqa: B010 -- mypy refuses to set a method

    def _seeing(self, read: Callable[[int], Tensor | None]) -> Callable[[int], Tensor | None]:
        def features(rows: int) -> Tensor | None:
            found = read(rows)
            if found is not None:
                self.see(found)
            return found

        return features


class Accumulated(NamedTuple):
    """The sum of changes since the last full step, the last step's input if seen, and the number of steps."""

    sum: float = 0.0
    previous: Tensor | None = None
    total: int | None = None


@dataclass(frozen=True)
class AccumulatedChange(Schedule):
    """A step is full if `Σ p(‖I_t - I_(t-1)‖₁ / ‖I_(t-1)‖₁)` since the last full step reaches the threshold.

    I_t is the present input of the first module, and p the polynomial, highest power first. The first and the last step
    are full. One decision is made for the whole batch.
    """

    needs_signal: ClassVar[bool] = True
    threshold: float
    polynomial: tuple[float, ...]
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)

    def predictor(self, expansion: Expansion) -> Expansion:
        return Expansion(0)

    def start(self, setting: Setting) -> Accumulated:
        self.meter.changes.clear()
        return Accumulated(total=setting.total_steps)

    def wants_signal(self, step: int) -> bool:
        return step > 0

    def error(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        return numerator.sum() / denominator.sum()  # against the last full step; only the report shows it

    def wants_full(self, state: Accumulated, step: int, error: float | None) -> bool:
        if step == 0 or error is None or (state.total is not None and step >= state.total - 1):
            return True
        return state.sum + self._rescaled(self.meter.change(state.previous)) >= self.threshold

    def advance(self, state: Accumulated, step: int, error: float | None, full: bool) -> Accumulated:
        summed, previous = 0.0, None  # without an error, the step's first input is still to come
        if error is not None:
            change, previous = self.meter.change(state.previous), self.meter.latest
            self.meter.changes.append(change)
            summed = 0.0 if full else state.sum + self._rescaled(change)
        self.meter.first = None
        return state._replace(sum=summed, previous=previous)

    def _rescaled(self, change: float) -> float:
        return float(np.polyval(self.polynomial, change))


def relative_change(before: Tensor, now: Tensor) -> float:
    """Return `‖now - before‖₁ / ‖before‖₁`."""
    return ((now - before).abs().mean() / before.abs().mean()).item()
