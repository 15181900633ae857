"""Decide whether each step is full. If the schedule needs the error signal, measure and store it.

Knows schedules, expansions, and the gauges that read the first module's input; nothing of units and forecasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from relcache.engine.features import share_memory, with_newest_of, zero_padding
from relcache.engine.gauge import Gauge
from relcache.engine.state import CallState, Request, Signal
from relcache.forecasters.expansion import subsample, sum_absolute, weighted_sum
from relcache.storage.store import Shared, Store

UNMEASURED = -math.inf  # the error on a process that cannot measure it
RunUp = Callable[[Gauge], None]
"""Runs a model until the gauge has read the input of its first module."""


class Decision:
    """The decisions of one session, by the schedules of its requests.

    Args:
        note: called with a key and a text; it adds a note once for each key.
    """

    def __init__(self, note: Callable[[str, str], None]):
        self._note = note
        self.gauges: Mapping[int, Gauge] = {}  # by the index of a model's first unit; empty if no signal is needed

    def use(self, gauges: Mapping[int, Gauge]) -> None:
        """Read the first modules' inputs with `gauges` from now on, in requests that follow the error."""
        self.gauges = gauges

    def open_call(self, request: Request) -> None:
        """Start the gauges for a new call, if the request follows the error."""
        for gauge in self.gauges.values() if request.rules.schedule.needs_signal else ():
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
        schedule, step = request.rules.schedule, request.step
        error, forced = None, not has_history
        if schedule.wants_signal(step) and (has_history or request.ranks.groups):
            error = self._error(request, call, index, run_up, store, has_history)
            forced = forced or not math.isfinite(error)
            if forced and error != UNMEASURED:
                request.fallbacks["signal not finite: full step"] += 1
                self._note("signal", "the error signal was NaN or infinite; such steps are computed in full")
            error = None if forced else error
        wanted = schedule.wants_full(request.schedule_state, step, error)
        if not wanted and not has_history:
            request.fallbacks["too few full steps yet: full step"] += 1
        self.record(request, wanted or forced, error)

    def record(self, request: Request, full: bool, error: float | None = None) -> None:
        """Record that the present step is full, or cached."""
        step = request.step
        request.full, request.signal[step] = full, error
        request.schedule_state = request.rules.schedule.advance(request.schedule_state, step, error, full)
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
        known, rules = call.branch.signal or Signal((), None), request.rules
        steps = (request.step, *known.steps)[: rules.predictor.order + 1]
        value, before = (
            subsample(zero_padding(features, valid, own=True), rules.schedule.token_stride),
            store.get(known.stack),
        )
        if before is not None and before[:, 0].shape != value.shape:
            steps, before = steps[:1], None
        stack = rules.predictor.extend(before, steps, value)
        stored = store.put(stack, (value,), shared)
        call.branch.signal = Signal(steps, stored, valid)
        if first is not None and stored is stack and share_memory(first, value):
            for stream in call.branch.cells[index].streams:
                stream.state = with_newest_of(stack, stream.state, first)

    def _error(
        self, request: Request, call: CallState, index: int, run_up: RunUp, store: Store, has_history: bool
    ) -> float:
        """Return the error of the present step, on which all processes agree; `UNMEASURED` if one cannot measure it.

        Reading it is the step's one host synchronisation in one process; several wait for each other.
        """
        sizes, ranks = self._sizes(request, call, index, run_up, store, has_history), request.ranks
        if sizes is None and ranks.tokens is not None:
            unmeasured = torch.full((call.rows,), UNMEASURED, device=request.device)
            sizes = unmeasured, torch.ones_like(unmeasured)
        error: float | Tensor = UNMEASURED
        if sizes is not None:
            error = request.rules.schedule.error(*ranks.sums(sizes, request.step))
        return ranks.agree(error, request.step, request.device)

    def _sizes(
        self, request: Request, call: CallState, index: int, run_up: RunUp, store: Store, has_history: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Return ‖I - I_T‖₁ and ‖I‖₁ of the first module's input, both (batch,); None if it was not reached.

        A process without history reads the input, too: other processes may take part in that.
        """
        features, signal = self._read(call, index, run_up), call.branch.signal
        if not has_history:
            return None
        if features is None or signal is None:
            request.fallbacks["first module did not run: full step"] += 1
            return None
        schedule, predictor = request.rules.schedule, request.rules.predictor
        value = subsample(zero_padding(features, signal.valid), schedule.token_stride)
        stack = store.get(signal.stack)
        if value.shape != stack[:, 0].shape:
            infinite = value.new_full((len(value),), math.inf)
            return infinite, torch.ones_like(infinite)
        predicted = weighted_sum(stack, predictor.coefficients(signal.steps, request.step))
        return sum_absolute(value - predicted), sum_absolute(value)

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
