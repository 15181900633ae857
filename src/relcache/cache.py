"""What is done at the units of a call: decide for the step, forecast or keep, branch by branch.

Knows forecasters and schedules by their base classes; knows nothing of models, patches or how calls are told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from relcache.expansion import Ladder, sum_absolute, weighted_sum
from relcache.forecasters.base import Forecaster
from relcache.models.base import Part, from_rows, to_rows
from relcache.request import Branch, Cell, Request, Stream, Work, shape_of
from relcache.schedules.base import Schedule
from relcache.store import Shared, Store
from relcache.tracker import glimpse


class Visit(NamedTuple):
    """One computation of a unit: its inputs, its state, and whether it is skipped."""

    inputs: list[Tensor | None]
    cell: Cell
    skip: bool


class Cache:
    """The features of one request, and the call in progress.

    Args:
        names, parts: of the units, in the order in which they are computed.
        first_units: places of the units that are the first of a model: by their input an error-driven schedule decides.
        forecaster: what a skipped unit returns.
        schedule: when a step is computed in full.
        note: called with a key and a text where something is to be told once.
        store: where features lie between the steps.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[Part],
        first_units: set[int],
        forecaster: Forecaster,
        schedule: Schedule,
        note: Callable[[str, str], None],
        store: Store,
    ):
        self._forecaster, self._schedule, self._note = forecaster, schedule, note
        self.request: Request | None = None
        self.arrange(names, parts, first_units, store)
        self._branch: Branch | None = None  # of the call in progress; None between calls
        self._work: Work | None = None
        self._rows = 1  # samples in the call
        self._inputs: list[Tensor | None] = []  # of the unit that was visited last
        self.serial = 0  # number of the call
        self.visited = False  # whether it has reached a unit
        self.in_run = ""  # name of the run of blocks that it is skipping
        self._updated = False  # whether it has changed a cell
        self._full: bool | None = None  # decision of the present step; None until its first unit asks
        self._doubtful = False  # whether the present step may be the first of another loop

    def arrange(self, names: Sequence[str], parts: Sequence[Part], first_units: set[int], store: Store) -> None:
        """Other units or another store from the next call on: what is cached is dropped, the record goes on."""
        self._names, self._parts, self._first_units, self.store = names, parts, first_units, store
        self._changed_in_place: set[int] = set()  # units whose outputs others write into: these are copied
        self.free()

    # Requests, steps and calls

    def open_step(self, doubtful: bool = False, full: bool | None = None) -> None:
        """The next step of the request begins; `full` decides it beforehand.

        A full step that is `doubtful`, because it may be the first of another loop, drops what is cached.
        """
        assert self.request is not None
        self.request.signal.append(None)
        self._full, self._doubtful = full, doubtful

    def open_call(self, host: int, name: str, rows: int, work: Work) -> None:
        """A call of the model `host` begins for the branch `name`.

        What the branch holds of another model, which this one has taken over from, is dropped.
        """
        assert self.request is not None
        branch = self.request.branches.setdefault(name, Branch(self._cells()))
        if branch.host != host:
            if branch.host is not None:
                branch.cells, branch.signal = self._cells(), None
            branch.host = host
        branch.step = self.request.step
        self._branch, self._work, self._rows, self.visited = branch, work, rows, False
        self.serial += 1
        self.store.prefetch(self._upcoming(sorted(self._first_units)[host]))

    def close_call(self) -> None:
        """The call has come to its end."""
        assert self.request is not None
        if self.in_run:
            raise RuntimeError(
                f"the last block of {self.in_run} was left out of a cached step, in which it returns the forecast: "
                "this model needs granularity='block' or 'module'"
            )
        if self._updated:
            held, on_device = self.request.held_bytes()
            self.request.cache_bytes = max(self.request.cache_bytes, held)
            self.request.device_bytes = max(self.request.device_bytes, on_device + self.store.most_moving)
        self.abandon_call()

    def abandon_call(self) -> None:
        """There is no call in progress."""
        self._branch, self._updated, self.in_run = None, False, ""
        self._inputs.clear()
        self.store.close()

    def free(self, branches: Iterable[Branch] | None = None) -> None:
        """Drop the features of `branches`, or of all: what comes next of them in this request is computed in full."""
        if branches is None:
            branches = self.request.branches.values() if self.request is not None else ()
        for branch in branches:
            for cell in branch.cells:
                cell.streams = []  # a unit that was broken off has its cell still
            branch.cells, branch.signal = self._cells(), None

    def _cells(self) -> list[Cell]:
        return [Cell() for _ in self._names]

    def _upcoming(self, index: int) -> Iterator[Any]:
        """What is kept of the unit `index` and of the one after it; the ladder of the error signal to decide by, and to
        extend in a full step."""
        assert self._branch is not None
        if index in self._first_units and self._full is not False:
            yield self._branch.signal
        yield from (stream.state for cell in self._branch.cells[index : index + 2] for stream in cell.streams)

    # One unit: what its runner asks

    @property
    def is_active(self) -> bool:
        """Whether a call is in progress that is to be cached."""
        return self._branch is not None

    def visit(self, index: int, inputs: list[Tensor | None]) -> Visit:
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
        if not cell.is_intact:
            self._changed_in_place.add(index)
            branch.cells[index] = cell = Cell()
        has_history = cell.full_steps >= self._forecaster.full_steps_needed and cell.shape == shape
        if self._full is None:
            self._full = self._decide(index, branch, _stream(inputs, 0), has_history)
            if self._full and self._doubtful:  # what is cached may be another loop's
                for known in request.branches.values():
                    known.cells, known.signal = self._cells(), None
                cell = branch.cells[index]
        self.store.prefetch(self._upcoming(index))
        if not self._full:
            if has_history:
                self._work.skipped[index] += 1
                return Visit(inputs, cell, True)
            request.fallbacks["module without history or of another shape: computed in full"] += 1
        if cell.step == request.step:
            raise TypeError(
                f"{self._names[index]} was called twice in one forward; relcache caches modules that a forward "
                "calls once"
            )
        if cell.shape != shape:
            branch.cells[index] = cell = Cell(shape)
            branch.signal = None if index in self._first_units else branch.signal
        return Visit(inputs, cell, False)

    def forecast(self, index: int, visit: Visit) -> Any:
        """The output of a skipped unit, in the form in which it was returned last."""
        request, cell, part = self.request, visit.cell, self._parts[index]
        assert request is not None
        outputs = []
        for stream in cell.streams:
            input = _stream(visit.inputs, stream.source)
            forecast = self._forecaster.forecast(self.store.get(stream.state), request.step, input)
            if forecast.fallback is not None:
                request.fallback_codes.append(forecast.fallback)
            output = forecast.output
            if part.residual:
                output = input + output
            elif index in self._changed_in_place:
                output = output.clone()
            outputs.append(from_rows(output, part.layout))
        if cell.form is None:
            return outputs[0]
        return tuple(None if place is None else outputs[place] for place in cell.form)

    def keep(self, index: int, visit: Visit, output: Any) -> None:
        """Hand a full output to the forecaster."""
        request, branch, cell, inputs = self.request, self._branch, visit.cell, visit.inputs
        assert request is not None
        assert branch is not None
        part, copy = self._parts[index], index in self._changed_in_place
        tensors, form = self._outputs(index, output)
        if not cell.streams:
            cell.form = form
            cell.streams = [Stream(_source(part, place, inputs)) for place, _ in tensors]
        shared: Shared = {}
        for stream, (_, tensor) in zip(cell.streams, tensors, strict=True):
            input = _stream(inputs, stream.source)
            kept = tensor.detach().clone() if copy else tensor.detach()
            rows = to_rows(kept, part.layout, self._rows)
            if part.residual:
                rows = rows - input
            else:
                stream.output = glimpse(rows)
            # no name for either state, so that none outlives its use
            stream.state = self.store.put(
                self._forecaster.update(self.store.get(stream.state), request.step, input, rows), (input, rows), shared
            )
        cell.full_steps, cell.step = cell.full_steps + 1, request.step
        self._updated = True
        if index in self._first_units and self._schedule.needs_signal:
            input = _stream(inputs, 0)
            ladder = self._forecaster.expansion.extend(self.store.get(branch.signal), request.step, input)
            branch.signal = self.store.put(ladder, (input,), shared)

    def _outputs(self, index: int, output: Any) -> tuple[list[tuple[int, Tensor]], list[int | None] | None]:
        """The tensors of an output, each with its place in it, and the form that `Cell.form` describes."""
        if isinstance(output, Tensor):
            return [(0, output)], None
        several = isinstance(output, (tuple, list)) and all(isinstance(entry, (Tensor, type(None))) for entry in output)
        if not several or not len(self._parts[index].streams):
            kinds = ", ".join(type(entry).__name__ for entry in output) if isinstance(output, (tuple, list)) else ""
            raise TypeError(
                f"{self._names[index]} returned {type(output).__name__}{f' of {kinds}' if kinds else ''}; a cached "
                "module returns one tensor, joint attention (relcache.joint in the spec) a tuple of tensors"
            )
        tensors = [(place, entry) for place, entry in enumerate(output) if entry is not None]
        places = iter(range(len(tensors)))
        return tensors, [None if entry is None else next(places) for entry in output]

    def _decide(self, index: int, branch: Branch, input: Tensor, has_history: bool) -> bool:
        """Whether the present step is full; asked by the first unit of its first call."""
        request, schedule = self.request, self._schedule
        assert request is not None
        step = request.step
        error, forced = None, not has_history
        if has_history and schedule.wants_signal(step):
            if index not in self._first_units or branch.signal is None:
                request.fallbacks["first module did not run: full step"] += 1
                forced = True
            elif not math.isfinite(error := self._signal_error(self.store.get(branch.signal), step, input)):
                request.fallbacks["signal not finite: full step"] += 1
                self._note("signal", "the error signal was NaN or infinite; such steps are computed in full")
                error, forced = None, True
        wants = schedule.wants_full(request.schedule_state, step, error)
        if schedule.full_last and request.total_steps is not None and request.total_steps - step <= schedule.full_last:
            wants = True
        if not wants and not has_history:
            request.fallbacks["too few full steps yet: full step"] += 1
        full = wants or forced
        request.schedule_state = schedule.advance(request.schedule_state, step, error, full)
        request.signal[step] = error
        if full:
            request.full_steps.append(step)
        return full

    def _signal_error(self, ladder: Ladder, step: int, input: Tensor) -> float:
        predicted = weighted_sum(ladder.terms, self._forecaster.expansion.coefficients(ladder, step))
        numerator = sum_absolute(input - predicted)
        denominator = sum_absolute(input)
        return float(self._schedule.error(numerator, denominator))  # the step's one host synchronisation


def _stream(inputs: list[Tensor | None], place: int) -> Tensor:
    features = inputs[place]
    if features is None:
        raise TypeError("a cached module was called without a tensor of features as its first input")
    return features


def _source(part: Part, place: int, inputs: list[Tensor | None]) -> int:
    """Which input an output goes with: the one of its own place; an output beyond them goes with the first."""
    if part.returns:
        return part.returns.index(place)
    return place if place < len(inputs) and inputs[place] is not None else 0
