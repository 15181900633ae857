"""Decides for each step whether it is full, and keeps the error signal by which a schedule may want to know.

Knows schedules and expansions; of units and forecasts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from relcache.engine.features import counted
from relcache.engine.state import Branch, Request, Signal
from relcache.forecasters.expansion import Expansion, subsample, sum_absolute, weighted_sum
from relcache.schedules.base import Schedule
from relcache.storage.store import Shared, Store


class Decision:
    """The decisions of one session.

    Args:
        schedule: when a step is computed in full.
        predictor: the expansion that predicts the first module's input.
        note: called with a key and a text where something is to be told once.
    """

    def __init__(self, schedule: Schedule, predictor: Expansion, note: Callable[[str, str], None]):
        self._schedule, self._predictor, self._note = schedule, predictor, note

    @property
    def needs_signal(self) -> bool:
        """Whether the schedule wants to know of errors."""
        return self._schedule.needs_signal

    def decide(
        self, request: Request, branch: Branch, has_history: bool, features: Callable[[], Tensor | None], store: Store
    ) -> None:
        """Decide for the present step; `features` gives the first module's input, where that is wanted."""
        schedule, step = self._schedule, request.step
        error, forced = None, not has_history
        if has_history and schedule.wants_signal(step):
            value = features()
            if value is None or branch.signal is None:
                request.fallbacks["first module did not run: full step"] += 1
                forced = True
            elif not math.isfinite(error := self._error(branch.signal, step, value, store)):
                request.fallbacks["signal not finite: full step"] += 1
                self._note("signal", "the error signal was NaN or infinite; such steps are computed in full")
                error, forced = None, True
        wants = schedule.wants_full(request.schedule_state, step, error)
        if not wants and not has_history:
            request.fallbacks["too few full steps yet: full step"] += 1
        self.settle(request, wants or forced, error)

    def settle(self, request: Request, full: bool, error: float | None = None) -> None:
        """The present step is full, or cached."""
        step = request.step
        request.full, request.signal[step] = full, error
        request.schedule_state = self._schedule.advance(request.schedule_state, step, error, full)
        if full:
            request.full_steps.append(step)

    def keep(
        self, request: Request, branch: Branch, features: Tensor, valid: Tensor | None, store: Store, shared: Shared
    ) -> tuple[Tensor, Tensor]:
        """Keep the first module's input of a full step; returns it, as far as it counts, and the stack of its terms."""
        steps, known, _ = branch.signal or Signal((), None)
        steps = (request.step, *steps)[: self._predictor.order + 1]
        value, before = subsample(counted(features, valid, own=True), self._schedule.token_stride), store.get(known)
        if before is not None and before[:, 0].shape != value.shape:
            steps, before = steps[:1], None
        stack = self._predictor.extend(before, steps, value)
        branch.signal = Signal(steps, store.put(stack, (value,), shared), valid)
        return value, stack

    def _error(self, signal: Signal, step: int, features: Tensor, store: Store) -> float:
        value = subsample(counted(features, signal.valid), self._schedule.token_stride)
        stack = store.get(signal.stack)
        if value.shape != stack[:, 0].shape:
            return math.nan
        predicted = weighted_sum(stack, self._predictor.coefficients(signal.steps, step))
        numerator, denominator = sum_absolute(value - predicted), sum_absolute(value)
        return float(self._schedule.error(numerator, denominator))  # the step's one host synchronisation
