"""Decide whether each step is full. If the schedule needs the error signal, measure and store it.

Knows schedules, expansions, and the gauges that read the first module's input; nothing of units and forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from relcache.engine.features import share_memory, with_newest_of, zero_padding
from relcache.engine.gauge import Gauge
from relcache.engine.state import CallState, Request, Signal
from relcache.forecasters.expansion import Expansion, subsample, sum_absolute, weighted_sum
from relcache.schedules.base import Schedule
from relcache.storage.store import Shared, Store

RunUp = Callable[[Gauge], None]
"""Runs a model until the gauge has read the input of its first module."""


class Decision:
    """The decisions of one session.

    Args:
        schedule: decides which steps are full.
        predictor: the expansion that predicts the first module's input.
        note: called with a key and a text; it adds a note once for each key.
    """

    def __init__(self, schedule: Schedule, predictor: Expansion, note: Callable[[str, str], None]):
        self._schedule, self._predictor, self._note = schedule, predictor, note
        self.gauges: Mapping[int, Gauge] = {}  # by the index of a model's first unit; empty if no signal is needed

    def use(self, gauges: Mapping[int, Gauge]) -> None:
        """Read the first modules' inputs with `gauges` from now on."""
        self.gauges = gauges if self._schedule.needs_signal else {}

    def open_call(self) -> None:
        """Start the gauges for a new call."""
        for gauge in self.gauges.values():
            gauge.open()

    def close_call(self) -> None:
        """Stop the gauges."""
        for gauge in self.gauges.values():
            gauge.close()

    def features(self, call: CallState, index: int) -> Tensor | None:
        """Return the first module's input, (batch, …); None if unit `index` is not the first, or it was not read."""
        gauge = self.gauges.get(index)
        return None if gauge is None else gauge.features(call.rows)

    def decide(
        self, request: Request, call: CallState, index: int, has_history: bool, run_up: RunUp, store: Store
    ) -> None:
        """Decide on the present step, at unit `index` of its first call."""
        schedule, step, signal = self._schedule, request.step, call.branch.signal
        error, forced = None, not has_history
        if has_history and schedule.wants_signal(step):
            value = self._read(call, index, run_up)
            if value is None or signal is None:
                request.fallbacks["first module did not run: full step"] += 1
                forced = True
            elif not math.isfinite(error := self._error(signal, step, value, store)):
                request.fallbacks["signal not finite: full step"] += 1
                self._note("signal", "the error signal was NaN or infinite; such steps are computed in full")
                error, forced = None, True
        wanted = schedule.wants_full(request.schedule_state, step, error)
        if not wanted and not has_history:
            request.fallbacks["too few full steps yet: full step"] += 1
        self.record(request, wanted or forced, error)

    def record(self, request: Request, full: bool, error: float | None = None) -> None:
        """Record that the present step is full, or cached."""
        step = request.step
        request.full, request.signal[step] = full, error
        request.schedule_state = self._schedule.advance(request.schedule_state, step, error, full)
        if full:
            request.full_steps.append(step)

    def keep(
        self,
        request: Request,
        call: CallState,
        index: int,
        first: Tensor | None,
        valid_of: Callable[[Tensor], Tensor | None],
        store: Store,
        shared: Shared,
    ) -> None:
        """Store the first module's input, (batch, …), of a full step.

        If it equals `first`, the input of unit `index`, the unit's states share its memory.
        """
        features = self.features(call, index)
        if features is None:
            call.branch.signal = None
            return
        valid = valid_of(features)
        known = call.branch.signal or Signal((), None)
        steps = (request.step, *known.steps)[: self._predictor.order + 1]
        value, before = (
            subsample(zero_padding(features, valid, own=True), self._schedule.token_stride),
            store.get(known.stack),
        )
        if before is not None and before[:, 0].shape != value.shape:
            steps, before = steps[:1], None
        stack = self._predictor.extend(before, steps, value)
        stored = store.put(stack, (value,), shared)
        call.branch.signal = Signal(steps, stored, valid)
        if first is not None and stored is stack and share_memory(first, value):
            for stream in call.branch.cells[index].streams:
                stream.state = with_newest_of(stack, stream.state, first)

    def _read(self, call: CallState, index: int, run_up: RunUp) -> Tensor | None:
        """Return the first module's input; if that module is inside the unit, run the model up to it."""
        gauge = self.gauges.get(index)
        if gauge is not None and gauge.features(call.rows) is None:
            call.paused = True
            try:
                run_up(gauge)
            finally:
                call.paused = False
        return self.features(call, index)

    def _error(self, signal: Signal, step: int, features: Tensor, store: Store) -> float:
        value = subsample(zero_padding(features, signal.valid), self._schedule.token_stride)
        stack = store.get(signal.stack)
        if value.shape != stack[:, 0].shape:
            return math.nan
        predicted = weighted_sum(stack, self._predictor.coefficients(signal.steps, step))
        numerator, denominator = sum_absolute(value - predicted), sum_absolute(value)
        return float(self._schedule.error(numerator, denominator))  # the step's one host synchronisation
