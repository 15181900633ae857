"""What is done at the units of a call: decide for the step, forecast or keep, branch by branch.

Knows forecasters and schedules by their base classes; knows nothing of models, patches or how calls are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from relcache.engine.compiled import Pace, Slot, coefficients_on
from relcache.engine.decision import Decision
from relcache.engine.features import (
    counted,
    from_rows,
    have_one_memory,
    outputs_of,
    source_of,
    stream_name,
    stream_of,
    to_rows,
)
from relcache.engine.gauge import Gauge
from relcache.engine.state import Branch, Cell, Request, Stream, Work, bytes_of, shape_of
from relcache.forecasters.base import Forecaster, within_type
from relcache.models.spec import Part
from relcache.schedules.base import Schedule
from relcache.storage.store import Shared, Store, tensors


class Visit(NamedTuple):
    """One computation of a unit: its inputs, its state, and whether it is skipped."""

    inputs: list[Tensor | None]
    cell: Cell
    skip: bool


CALLED_TWICE = "was called twice in one forward; relcache caches modules that a forward calls once"
LEFT_OUT = (
    "the last block of {} was left out of a cached step, in which it returns the forecast: this model needs "
    "granularity='block' or 'module'"
)
Look = Callable[[Gauge], None]
"""Lets a gauge see the input of a model's first module by a computation that goes no further."""

ValidTokens = Callable[[str, int], "Tensor | None"]
"""Which tokens of a stream count, from its name and their number, as of `ModelSpec.valid_tokens`."""


class Cache:
    """The features of one request, and the call in progress.

    Args:
        names, parts: of the units, in the order in which they are computed.
        gauges: by the place of the unit that is a model's first, what reads the input of its first module, by which an
            error-driven schedule decides.
        forecaster: what a skipped unit returns.
        schedule: when a step is computed in full.
        note: called with a key and a text where something is to be told once.
        store: where features lie between the steps.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[Part],
        gauges: Mapping[int, Gauge],
        forecaster: Forecaster,
        schedule: Schedule,
        note: Callable[[str, str], None],
        store: Store,
    ):
        self.forecaster = forecaster
        self._most_steps = max(forecaster.full_steps_needed, forecaster.expansion.order + 1)
        self._decision = Decision(schedule, schedule.predictor(forecaster.expansion), note)
        self.request: Request | None = None
        self.arrange(names, parts, gauges, store)
        self._branch: Branch | None = None  # of the call in progress; None between calls
        self._work: Work | None = None
        self._valid_tokens: ValidTokens | None = None
        self._rows = 1  # samples in the call
        self._inputs: list[Tensor | None] = []  # of the unit that was visited last
        self.serial = 0  # number of the call
        self.visited = False  # whether it has reached a unit
        self.in_run = ""  # name of the run of blocks that it is skipping
        self._updated = False  # whether it has changed a cell
        self._codes: list[Tensor] = []  # of its forecasts' fall-backs
        self._looks = False  # whether a gauge is about to see what it reads, and units are as if nothing was cached

    def arrange(self, names: Sequence[str], parts: Sequence[Part], gauges: Mapping[int, Gauge], store: Store) -> None:
        """Other units or another store from the next call on: what is cached is dropped, the record goes on."""
        self._names, self._parts, self.store = names, parts, store
        self._first_units = sorted(gauges)
        self.gauges = gauges if self._decision.needs_signal else {}
        self.pace, self.slots = Pace(), [Slot() for _ in names]

    # Requests, steps and calls

    def open_step(self, full: bool | None = None) -> None:
        """The next step of the request begins; `full` decides it beforehand."""
        assert self.request is not None
        self.request.open_step(full)

    def open_call(self, host: int, name: str, rows: int, work: Work, valid_tokens: ValidTokens | None = None) -> None:
        """A call of the model `host` begins for the branch `name`; `valid_tokens` is that of its spec for this call.

        What the branch holds of another model, which this one has taken over from, is dropped.
        """
        assert self.request is not None
        branch = self.request.branches.setdefault(name, Branch(self._cells()))
        if branch.host != host:
            if branch.host is not None:
                branch.cells, branch.signal = self._cells(), None
            branch.host = host
        branch.step, self._valid_tokens = self.request.step, valid_tokens
        self._branch, self._work, self._rows, self.visited = branch, work, rows, False
        self.serial += 1
        self.store.prefetch(self._upcoming(self._first_units[host]))
        for gauge in self.gauges.values():
            gauge.wake()

    def close_call(self) -> None:
        """The call has come to its end."""
        assert self.request is not None
        lent = 0
        if self.pace.active:
            lent = bytes_of([value for slot in self.slots for value in slot.lent])
            self._collect()
        self.request.count_fallbacks(self._codes)
        if self.in_run:
            raise RuntimeError(LEFT_OUT.format(self.in_run))
        if self._updated:
            held, on_device = self.request.held_bytes()
            self.request.cache_bytes = max(self.request.cache_bytes, held)
            self.request.device_bytes = max(self.request.device_bytes, on_device + self.store.most_moving + lent)
        self.abandon_call()

    def abandon_call(self) -> None:
        """There is no call in progress."""
        self._branch, self._updated, self.in_run, self._valid_tokens, self._codes = None, False, "", None, []
        for gauge in self.gauges.values():
            gauge.rest()
        if self.pace.active:
            self.pace.active = self.pace.skip = False
            for slot in self.slots:
                slot.clear()
        self._inputs.clear()
        self.store.close()

    def pass_by(self) -> None:
        """A call of the present step is computed in full, and nothing of it is kept."""
        assert self.request is not None
        if self.request.full is None:
            self._decision.settle(self.request, full=True)

    def free(self, request: Request | None, branches: Iterable[Branch] | None = None) -> None:
        """Drop the features of a request, or of these branches of it: what comes next of them is computed in full."""
        if branches is None:
            if request is not None:
                request.gaps.clear()
            branches = request.branches.values() if request is not None else ()
        for branch in branches:
            for cell in branch.cells:
                cell.streams = []  # a unit that was broken off has its cell still
            branch.cells, branch.signal = self._cells(), None

    def _cells(self) -> list[Cell]:
        return [Cell() for _ in self._names]

    @property
    def _skips_step(self) -> bool:
        return self.request is not None and self.request.full is False

    def _upcoming(self, index: int) -> Iterator[Any]:
        """What is kept of the unit `index` and of the one after it; the error signal to decide by, and to extend in a
        full step."""
        assert self._branch is not None
        if index in self.gauges and not self._skips_step and self._branch.signal is not None:
            yield self._branch.signal.stack
        yield from (stream.state for cell in self._branch.cells[index : index + 2] for stream in cell.streams)

    # Compiled code, which cannot ask

    def settle(self, units: range, look: Look) -> None:
        """Decide for the call of a model with compiled code before it is made, and give `units` what they need.

        The units are skipped if the step is to be cached and each has a history from a call of these shapes.
        """
        branch, request = self._branch, self.request
        assert branch is not None
        assert request is not None
        several = next((self._names[index] for index in units if self._parts[index].calls > 1), None)
        if several is not None:
            raise ValueError(
                f"{several}: a forward calls this module more than once, which compiled code cannot tell apart: use "
                "granularity='block' or 'stack', or do not compile"
            )
        cells = {index: branch.cells[index] for index in units if branch.cells[index].steps}
        needed = self.forecaster.full_steps_needed
        ready = bool(cells) and branch.work is self._work
        ready = ready and all(len(cell.steps) >= needed for cell in cells.values())
        if request.full is None:
            self._decide(units.start, branch, ready, look)
        elif not request.full and not ready:
            request.fallbacks["module without history or of another shape: computed in full"] += 1
        self.pace.active, self.pace.rows, self.pace.far = True, self._rows, False
        self.pace.skip = not request.full and ready
        branch.work = self._work
        if not self.pace.skip:
            return
        known: dict[tuple[tuple[int, ...], torch.device], Tensor | None] = {}
        for index, cell in cells.items():
            slot, streams = self.slots[index], cell.streams
            slot.states, slot.form = tuple(stream.state for stream in streams), cell.form
            slot.sources, slot.empties = tuple(stream.source for stream in streams), cell.empties
            slot.valid = tuple(stream.valid for stream in streams)
            values, may_stray = self._coefficients_of(cell)
            self.pace.far = self.pace.far or may_stray
            key = cell.steps, next(iter(tensors(slot.states))).device
            if key not in known:
                known[key] = coefficients_on(values, self.forecaster.expansion.order, key[1])
            slot.coefficients = known[key]

    def _collect(self) -> None:
        """Take from the units' slots what compiled code has left there."""
        request, branch = self.request, self._branch
        assert request is not None
        assert branch is not None
        assert self._work is not None
        for index, slot in enumerate(self.slots):
            if slot.twice:
                raise TypeError(f"{self._names[index]} {CALLED_TWICE}")
            if slot.opened and not slot.visited and slot.output is None:
                raise RuntimeError(LEFT_OUT.format(self._names[index]))
            if slot.visited:
                self.visited = True
                self._work.skipped[index] += 1
                self._codes += slot.codes
            elif slot.output is not None and slot.inputs is not None:
                self.visited = True
                shape = shape_of(slot.inputs)
                cell = branch.cells[index]
                if cell.shape != shape:
                    branch.cells[index] = cell = Cell(shape)
                # a CUDA graph writes over what it has returned when it runs again
                inputs, output = self._held(index, slot.inputs), slot.output
                cell.empties = tree_map_only(Tensor, torch.clone, slot.empties)
                slot.clear()
                self.keep(index, Visit(inputs, cell, False), output)
            slot.clear()
        self.pace.active = self.pace.skip = False

    # One unit: what its runner asks

    @property
    def is_active(self) -> bool:
        """Whether a call is in progress that is to be cached."""
        return self._branch is not None and not self._looks

    def visit(self, index: int, inputs: list[Tensor | None], look: Look) -> Visit:
        """Whether the unit `index`, given `inputs`, is skipped; the first unit of a step decides for it."""
        branch, request = self._branch, self.request
        assert branch is not None
        assert request is not None
        assert self._work is not None
        self.visited = True
        layout = self._parts[index].layout
        self._inputs = inputs = [None if input is None else to_rows(input, layout, self._rows) for input in inputs]
        shape = shape_of(inputs)
        cell = branch.cells[index]
        has_history = len(cell.steps) >= self.forecaster.full_steps_needed and cell.shape == shape
        if request.full is None:
            self._decide(index, branch, has_history, look)
        self.store.prefetch(self._upcoming(index))
        if not request.full:
            if has_history:
                self._work.skipped[index] += 1
                return Visit(inputs, cell, True)
            request.fallbacks["module without history or of another shape: computed in full"] += 1
        if cell.steps[:1] == (request.step,):
            raise TypeError(f"{self._names[index]} {CALLED_TWICE}")
        if cell.shape != shape:
            branch.cells[index] = cell = Cell(shape)
            branch.signal = None if index in self.gauges else branch.signal
        return Visit(self._held(index, inputs), cell, False)

    def _held(self, index: int, inputs: list[Tensor | None]) -> list[Tensor | None]:
        """Copies of the inputs of a unit that is about to run, if they are read afterwards: it may write into them."""
        if not (self.forecaster.keeps_input or self._parts[index].residual):
            return inputs
        first, *others = inputs
        gauge = self.gauges.get(index) if not self._parts[index].residual else None
        seen = gauge.features(self._rows) if gauge is not None else None  # a copy that the error signal holds, too
        copies = [None if input is None else input.clone() for input in others]
        return [None if first is None else first.clone() if seen is None else seen, *copies]

    def forecast(self, index: int, visit: Visit) -> Any:
        """The output of a skipped unit, in the form in which it was returned last."""
        request, cell, part = self.request, visit.cell, self._parts[index]
        assert request is not None
        coefficients, may_stray = self._coefficients_of(cell)
        make = self.forecaster.forecast_far if may_stray else self.forecaster.forecast
        outputs = []
        for stream in cell.streams:
            input = stream_of(visit.inputs, stream.source)
            read = counted(input, stream.valid) if self.forecaster.reads_input else input
            output, fallback = make(self.store.get(stream.state), coefficients, read)
            self._count(fallback)
            if part.residual:
                output, held = within_type(input + output)
                self._count(held)
            elif not coefficients:
                output = output.clone()  # a view of what is cached, and the caller may write into it
            outputs.append(from_rows(output, part.layout))
        if cell.form is None:
            return outputs[0]
        return tuple(None if place is None else outputs[place] for place in cell.form)

    def _count(self, codes: Tensor | None) -> None:
        if codes is not None:
            self._codes.append(codes)

    def _coefficients_of(self, cell: Cell) -> tuple[list[float], bool]:
        """Those of a forecast at the present step, worked out once for all units of one history; and whether with them
        it may stray."""
        assert self.request is not None
        known = self.request.coefficients
        if cell.steps not in known:
            numbers = self.forecaster.coefficients(cell.steps, self.request.step)
            known[cell.steps] = numbers, self.forecaster.may_stray(cell.steps, numbers)
        return known[cell.steps]

    def keep(self, index: int, visit: Visit, output: Any) -> None:
        """Hand a full output to the forecaster."""
        request, branch, cell, inputs = self.request, self._branch, visit.cell, visit.inputs
        assert request is not None
        assert branch is not None
        part = self._parts[index]
        found, form = outputs_of(output, self._names[index], part)
        if not cell.streams:
            cell.form = form
            cell.streams = [Stream(source_of(part, place, inputs)) for place, _ in found]
        cell.steps = (request.step, *cell.steps)[: self._most_steps]
        shared: Shared = {}
        for stream, (_, tensor) in zip(cell.streams, found, strict=True):
            input = stream_of(inputs, stream.source)
            rows = to_rows(tensor.detach(), part.layout, self._rows)
            if part.residual:
                rows, held = within_type(rows - input)
                self._count(held)
            stream.valid = self._valid(f"{self._names[index]}:{stream_name(part, stream.source)}", rows)
            input, rows = counted(input, stream.valid, self.forecaster.keeps_input), counted(rows, stream.valid)
            # no name for either state, so that none outlives its use
            stream.state = self.store.put(
                self.forecaster.update(self.store.get(stream.state), cell.steps, input, rows), (input, rows), shared
            )
        if index in self.gauges:
            self._keep_signal(branch, cell, inputs[0], self.gauges[index], shared)
        self._updated = True

    def _valid(self, name: str, features: Tensor) -> Tensor | None:
        """Which tokens count of the stream `name`; without differences nothing is measured."""
        if self._valid_tokens is None or not self.forecaster.expansion.order or features.ndim != 3:
            return None
        return self._valid_tokens(name, features.shape[1])

    def _keep_signal(self, branch: Branch, cell: Cell, first: Tensor | None, gauge: Gauge, shared: Shared) -> None:
        """Keep what the gauge sees. If that is `first`, the unit's own input, its states share the memory of it."""
        assert self.request is not None
        features = gauge.features(self._rows)
        if features is None:
            branch.signal = None
            return
        valid = self._valid(gauge.name, features)
        value, stack = self._decision.keep(self.request, branch, features, valid, self.store, shared)
        is_whole = branch.signal is not None and branch.signal.stack is stack
        if first is not None and is_whole and have_one_memory(first, value):
            for stream in cell.streams:
                stream.state = with_newest_of(stack, stream.state, first)

    def _decide(self, index: int, branch: Branch, has_history: bool, look: Look) -> None:
        """Decide whether the present step is full; asked by the first unit of its first call."""
        assert self.request is not None
        self._decision.decide(self.request, branch, has_history, lambda: self._look(index, look), self.store)

    def _look(self, index: int, look: Look) -> Tensor | None:
        """The input of the first module, if the unit `index` is its own or around it."""
        gauge = self.gauges.get(index)
        if gauge is None:
            return None
        if gauge.features(self._rows) is None:
            self._looks = True
            try:
                look(gauge)
            finally:
                self._looks = False
        return gauge.features(self._rows)


def with_newest_of(stack: Tensor, state: Any, input: Tensor) -> Any:
    """`state` with the newest term of the error signal's `stack` in the place of `input`, of which it is a copy."""
    return tree_map_only(Tensor, lambda leaf: stack[:, 0] if leaf is input else leaf, state)
