"""The cache of a session: it decides on each step, prepares forecasts, and keeps the outputs of units.

Knows forecasters and schedules by their base classes, from the request; nothing of models, patches and callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from relcache.engine.decision import Decision, RunUp
from relcache.engine.features import outputs_of, source_of, stream_name, stream_of, to_rows, zero_padding
from relcache.engine.gauge import Gauge
from relcache.engine.state import Branch, CallState, Cell, Request, Rules, Stream, Visit, Work, bytes_of, shape_of
from relcache.forecasters.base import within_type
from relcache.forecasters.expansion import coefficients_on
from relcache.models.spec import Part
from relcache.storage.store import Shared, Store, tensors

CALLED_TWICE = "was called twice in one forward; relcache caches modules that a forward calls once"
LEFT_OUT = (
    "the last block of {} was left out of a cached step, but has to return the forecast: this model needs granularity="
    "'block' or 'module'"
)
NO_HISTORY = "module without history or of another shape: computed in full"


class Cache:
    """The features of one request, and the call in progress.

    Args:
        names, parts: of the units, in the order of computation.
        gauges: readers of the first module's input, by the index of a model's first unit.
        note: called with a key and a text; it adds a note once for each key.
        store: stores features between the steps.
        reads_error: whether a schedule may follow the error of the first module's input.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts: Sequence[Part],
        gauges: Mapping[int, Gauge],
        note: Callable[[str, str], None],
        store: Store,
        reads_error: bool,
    ):
        self.reads_error = reads_error
        self._decision = Decision(note)
        self.request: Request | None = None
        self._call: CallState | None = None  # None between calls
        self.arrange(names, parts, gauges, store)

    def arrange(self, names: Sequence[str], parts: Sequence[Part], gauges: Mapping[int, Gauge], store: Store) -> None:
        """Use other units or another store from the next call on. Drop the cached features and keep the record."""
        self._names, self._parts, self.store = names, parts, store
        self._first_units, self._all_gauges = sorted(gauges), gauges
        self._decision.use(gauges if self.reads_error else {})
        self.visits = [Visit(index) for index in range(len(names))]  # compiled code is guarded on these objects

    def read_error(self) -> None:
        """Let schedules follow the error from the next request on; attach the gauges to the models then."""
        self.reads_error = True
        self._decision.use(self._all_gauges)

    @property
    def _rules(self) -> Rules:
        """The rules of the present request."""
        assert self.request is not None
        return self.request.rules

    @property
    def gauges(self) -> Mapping[int, Gauge]:
        """The gauges in use, by the index of a model's first unit."""
        return self._decision.gauges

    # Calls

    def open_call(
        self, host: int, name: str, rows: int, work: Work, valid: Callable[[str, int], Tensor | None] | None = None
    ) -> None:
        """Begin a call of the model `host` for the branch `name`; drop the branch's features of another model.

        `valid` gives a bool mask (rows, tokens) for a stream's name and number of tokens.
        """
        assert self.request is not None
        branch = self.request.branches.setdefault(name, Branch(self._cells()))
        if branch.host != host:
            if branch.host is not None:
                branch.cells, branch.signal = self._cells(), None
            branch.host = host
        if self.request.ranks.tokens is not None:
            if branch.work is None or branch.work.sizes != work.sizes:  # perhaps of other shapes here alone
                branch.cells, branch.signal = self._cells(), None
            branch.work = work
        branch.step = self.request.step
        self._call = CallState(branch, work, rows, valid)
        self.store.prefetch(self._upcoming(self._first_units[host]))
        self._decision.open_call(self.request)

    def close_call(self) -> bool:
        """End the call; return whether it reached a unit."""
        call, request = self._call, self.request
        assert call is not None
        assert request is not None
        compiled = [visit for visit in self.visits if visit.active]
        lent = bytes_of([value for visit in compiled for value in visit.lent])
        self._collect(call, compiled)
        request.count_fallbacks(call.codes)
        for index, visit in call.visits.items():
            if visit.skip and self._parts[index].run:
                raise RuntimeError(LEFT_OUT.format(self._names[index]))
        if call.updated:
            in_all, on_device = request.cached_bytes()
            request.cache_bytes = max(request.cache_bytes, in_all)
            request.device_bytes = max(request.device_bytes, on_device + self.store.most_moving + lent)
        self.abandon_call()
        return call.visited

    def abandon_call(self) -> None:
        """End the call, even an interrupted one."""
        self._call = None
        self._decision.close_call()
        for visit in self.visits:
            if visit.active:
                visit.clear()
        self.store.close()

    def open_uncached_call(self) -> None:
        """Compute a call of the present step in full, without caching it."""
        assert self.request is not None
        if self.request.full is None:
            self._decision.record(self.request, full=True)

    def free(self, request: Request | None, branches: Iterable[Branch] | None = None) -> None:
        """Drop the features of a request, or of some of its branches; their next step is computed in full."""
        if branches is None and request is not None:
            request.gaps.clear()
            branches = request.branches.values()
        for branch in branches or ():
            for cell in branch.cells:
                cell.streams = []  # an interrupted unit still refers to its cell
            branch.cells, branch.signal = self._cells(), None

    def _cells(self) -> list[Cell]:
        return [Cell() for _ in self._names]

    def _upcoming(self, index: int) -> Iterator[Any]:
        """Yield the error signal that the unit `index` reads, and the states of this unit and the next."""
        assert self._call is not None
        assert self.request is not None
        branch = self._call.branch
        if index in self.gauges and self.request.full is not False and branch.signal is not None:
            yield branch.signal.stack
        yield from (stream.state for cell in branch.cells[index : index + 2] for stream in cell.streams)

    # Compiled code, which cannot call the cache

    def plan_call(self, units: range, run_up: RunUp) -> None:
        """Decide on a call with compiled code before it runs, and prepare the visits of its `units`.

        The units are skipped if the step is cached and each has a history from calls of the same shapes.
        """
        call, request = self._call, self.request
        assert call is not None
        assert request is not None
        repeated = next((self._names[index] for index in units if self._parts[index].calls > 1), None)
        if repeated is not None:
            raise ValueError(
                f"{repeated}: a forward calls this module more than once, and compiled code cannot tell the calls "
                "apart: use granularity='block' or 'stack', or do not compile"
            )
        forecaster = self._rules.forecaster
        needed, order = forecaster.full_steps_needed, forecaster.expansion.order
        cells = {index: cell for index in units if (cell := call.branch.cells[index]).steps}
        ready = (
            bool(cells) and call.branch.work is call.work and all(len(cell.steps) >= needed for cell in cells.values())
        )
        if request.full is None:
            self._decision.decide(request, call, units.start, ready, run_up, self.store)
        elif not request.full and not ready:
            request.fallbacks[NO_HISTORY] += 1
        call.branch.work = call.work
        for index in units:
            visit = self.visits[index]
            visit.active, visit.rows, visit.forecaster = True, call.rows, forecaster
        if request.full or not ready:
            return
        known: dict[tuple[tuple[int, ...], torch.device], Tensor | None] = {}
        far = False
        for index, cell in cells.items():
            visit = self._fill(self.visits[index], cell)
            far = far or visit.far
            key = cell.steps, next(iter(tensors([stream.state for stream in visit.streams]))).device
            if key not in known:
                known[key] = coefficients_on(visit.coefficients, order, key[1])
            numbers = known[key]
            visit.coefficients = () if numbers is None else numbers
        for index in cells:
            self.visits[index].far = far and not forecaster.bounded_when_compiled

    def _collect(self, call: CallState, visits: list[Visit]) -> None:
        """Keep the outputs that compiled code left on its visits."""
        for visit in visits:
            index = visit.index
            if visit.twice:
                raise TypeError(f"{self._names[index]} {CALLED_TWICE}")
            if visit.opened and not visit.closed:
                raise RuntimeError(LEFT_OUT.format(self._names[index]))
            if not visit.closed:
                continue
            call.visited = True
            if visit.skip:
                call.work.skipped[index] += 1
                call.codes += visit.codes
                continue
            assert visit.inputs is not None
            shape, cell = shape_of(visit.inputs), call.branch.cells[index]
            if cell.shape != shape:
                cell = call.branch.cells[index] = Cell(shape)
            # a CUDA graph overwrites its outputs when it runs again
            cell.empties = tree_map_only(Tensor, torch.clone, visit.empties)
            output, visit.inputs = visit.output, self._own_inputs(call, index, visit.inputs)
            visit.output = None
            self.keep(visit, output)
            visit.inputs = None

    # One unit, called by its replacements

    @property
    def is_active(self) -> bool:
        """Whether a cached call is in progress."""
        return self._call is not None and not self._call.paused

    def open_visit(self, index: int, close: bool) -> Visit | None:
        """Return the open visit of the unit `index`; `close` says that its last module is being called."""
        assert self._call is not None
        if not close:
            return self._call.visits.get(index)
        return self._call.visits.pop(index, None)

    def count(self, codes: list[Tensor]) -> None:
        """Count the fall-backs of a forecast, each (batch,) or (1,) of int8, when the call ends."""
        assert self._call is not None
        self._call.codes += codes

    def open_unit(
        self, index: int, passed: list[Tensor | None], run_up: RunUp, *, stays_open: bool
    ) -> tuple[Visit, list[Tensor | None]]:
        """Open the unit `index` with its inputs in the model's layout; the first unit of a step decides on the step.

        Return the visit, and the inputs as (rows, tokens, channels). A surplus call counts as
        a repetition of the last one.
        """
        call, request = self._call, self.request
        assert call is not None
        assert request is not None
        call.visited = True
        call.turns[index] += 1
        part, first = self._parts[index], index
        index += min(call.turns[index], part.calls) - 1
        inputs = [None if value is None else to_rows(value, part.layout, call.rows) for value in passed]
        cell, shape = call.branch.cells[index], shape_of(inputs)
        forecaster = request.rules.forecaster
        has_history = len(cell.steps) >= forecaster.full_steps_needed and cell.shape == shape
        if request.full is None:
            self._decision.decide(request, call, index, has_history, run_up, self.store)
        self.store.prefetch(self._upcoming(index))
        visit = Visit(index, forecaster, opened=True)
        if stays_open:
            call.visits[first] = visit
        if not request.full and has_history:
            call.work.skipped[index] += 1
            return self._fill(visit, cell), inputs
        if not request.full:
            request.fallbacks[NO_HISTORY] += 1
        if cell.steps[:1] == (request.step,):
            raise TypeError(f"{self._names[index]} {CALLED_TWICE}")
        if cell.shape != shape:
            call.branch.signal = None if index in self.gauges else call.branch.signal
            cell = call.branch.cells[index] = Cell(shape)
        visit.empties = cell.empties
        visit.inputs = self._own_inputs(call, index, inputs)
        return visit, inputs

    def _fill(self, visit: Visit, cell: Cell) -> Visit:
        """Give a skipped unit's visit the data for its forecast."""
        assert self.request is not None
        visit.skip, visit.form, visit.mesh, visit.empties = True, cell.form, cell.mesh, cell.empties
        visit.streams = tuple(cell.streams)
        visit.coefficients, visit.far = self.request.numbers_for(cell.steps)
        return visit

    def _own_inputs(self, call: CallState, index: int, inputs: list[Tensor | None]) -> list[Tensor | None]:
        """Copy the inputs of a computed unit if they are read later, as the unit may overwrite them."""
        if not (self._rules.forecaster.keeps_input or self._parts[index].residual):
            return inputs
        first, *others = inputs
        # the error signal already has a copy of the first module's input
        read = None if self._parts[index].residual else self._decision.features(call, index)
        copies = [None if input is None else input.clone() for input in others]
        return [None if first is None else first.clone() if read is None else read, *copies]

    def keep(self, visit: Visit, output: Any) -> None:
        """Pass the full output of a unit to the forecaster."""
        call, request, inputs = self._call, self.request, visit.inputs
        assert call is not None
        assert request is not None
        assert inputs is not None
        index, part, cell = visit.index, self._parts[visit.index], call.branch.cells[visit.index]
        forecaster = request.rules.forecaster
        outputs, form = outputs_of(output, self._names[index], part)
        if not cell.streams:
            cell.form, cell.mesh = form, visit.mesh
            cell.streams = [Stream(source_of(part, position, inputs)) for position, _ in outputs]
        cell.steps = (request.step, *cell.steps)[: request.rules.most_steps]
        shared: Shared = {}
        for stream, (_, tensor) in zip(cell.streams, outputs, strict=True):
            input = stream_of(inputs, stream.source)
            rows = to_rows(tensor.detach(), part.layout, call.rows)
            if part.residual:
                rows, code = within_type(rows - input)
                call.codes += [] if code is None else [code]
            stream.valid = self._valid(call, f"{self._names[index]}:{stream_name(part, stream.source)}", rows)
            input = zero_padding(input, stream.valid, forecaster.keeps_input)
            rows = zero_padding(rows, stream.valid)
            # unnamed, so that neither state outlives its use
            stream.state = self.store.put(
                forecaster.update(self.store.get(stream.state), cell.steps, input, rows), (input, rows), shared
            )
        if index in self.gauges and request.rules.schedule.needs_signal:
            valid = partial(self._valid, call, self.gauges[index].name)
            self._decision.keep(request, call, index, inputs[0], valid, self.store, shared)
        call.updated = True

    def _valid(self, call: CallState, name: str, features: Tensor) -> Tensor | None:
        """Return the mask (batch, tokens) of the valid tokens of the stream `name`; None where it is not needed."""
        if call.valid_tokens is None or not self._rules.forecaster.expansion.order or features.ndim != 3:
            return None
        return call.valid_tokens(name, features.shape[1])
