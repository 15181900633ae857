"""Joins what, when and where: counts steps, keeps branches apart, asks the schedule, calls the forecaster, records.

One session belongs to one enabled pipeline, and to each transformer in it. It knows forecasters, schedules and specs by
their base classes only.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.expansion import Ladder, sum_absolute, weighted_sum
from relcache.flops import Flops, count_modules
from relcache.forecasters.base import Forecaster
from relcache.host import Host, refuse_cache
from relcache.meta import sketch, without_values
from relcache.models.base import ModelSpec, from_rows, to_rows
from relcache.report import Report
from relcache.request import Branch, Cell, Request, Stream, Work, shape_of
from relcache.runner import Visit
from relcache.schedules.base import Schedule
from relcache.tracker import MOST_BRANCHES, Loop, Tracker, index_in, see


class Session:
    """Caching on the transformers of one pipeline.

    Args:
        models: the transformers by their names in the pipeline, each with its spec. They share one clock: an expert
            that takes over in the middle goes on with the steps of the other.
        forecaster: what a skipped unit returns.
        schedule: when a step is computed in full.
        method: the name that the report shows.
        pipeline: the diffusers pipeline that the transformers belong to, if it is known; kept weakly.
        num_inference_steps: steps of each request, where no pipeline tells.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module, ModelSpec]],
        forecaster: Forecaster,
        schedule: Schedule,
        method: str,
        pipeline: Any = None,
        num_inference_steps: int | None = None,
    ):
        self.hosts: list[Host] = []
        self.unit_names: list[str] = []
        for place, (name, model, spec) in enumerate(models):
            host = Host(name, model, spec, place, len(self.unit_names))
            prefix = f"{name}." if len(models) > 1 else ""
            self.unit_names += [prefix + unit for unit in host.unit_names]
            self.hosts.append(host)
        self.model_name = " and ".join(dict.fromkeys(host.model_name for host in self.hosts))
        self.method = method
        self.forecaster, self.schedule = forecaster, schedule
        self._parts = [part for host in self.hosts for part in host.parts]
        self._first_units = {host.first_unit for host in self.hosts}
        self._num_inference_steps = num_inference_steps
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self._tracker = Tracker(self.hosts[0].spec.time_runs)
        self._context: str | None = None
        self._loop: Loop | None = None  # of the present request
        self._request: Request | None = None
        self._branch: Branch | None = None  # of the call in progress; None between calls
        self._rows = 1  # samples in it
        self.serial = 0  # its number
        self._visited = False  # whether it has reached a unit
        self._work: Work | None = None
        self._full: bool | None = None  # decision of the present step; None until its first unit asks
        self._doubtful = False  # whether the present step may be the first of another loop
        self._changed_in_place: set[int] = set()  # units whose outputs others write into: these are copied
        self._updated = False  # whether the call in progress changed a cell
        self._flops: dict[Any, Flops | str] = {}
        self._notes: dict[str, str] = {}
        self.attached = False

    # Attaching and detaching

    def attach(self) -> None:
        """Swap the units' forwards and watch the models'."""
        self.attached = True
        for host in self.hosts:
            model = host.model()
            assert model is not None
            host.watch.watch(model, partial(self._before, host), self._after)
            if hasattr(model, "cache_context"):
                host.watch.swap(model, "cache_context", self._enter_context)
            if hasattr(model, "enable_cache"):
                host.watch.swap(model, "enable_cache", refuse_cache)
            host.swap_units(self, model)

    def detach(self) -> None:
        """Put every forward back and drop the cache; the record of the last request stays. Twice is once."""
        self.attached = False
        for host in self.hosts:
            host.swaps.restore()
            host.watch.restore()
        self._tracker.reset()
        if self._request is not None:
            self._request.branches = {name: Branch([]) for name in self._request.branches}

    def reset(self) -> None:
        """Drop cache and record: the next call begins a request."""
        self._tracker.reset()
        self._request = None

    @contextmanager
    def _enter_context(self, original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        outer, self._context = self._context, name
        try:
            with original(name, *args, **kwargs) as value:
                yield value
        finally:
            self._context = outer

    # One call of a transformer

    def _before(self, host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if any(tensor.device.type == "meta" for tensor in tensors):
            return  # shapes only, no denoising step
        if model.training and torch.is_grad_enabled():
            raise RuntimeError(
                "relcache is enabled on a model in training mode: cached steps have no gradients. "
                "Call model.eval() to sample, or disable() on the handle to train"
            )
        if torch.is_grad_enabled() and getattr(model, "gradient_checkpointing", False):
            raise RuntimeError(
                "relcache is enabled on a model with gradient checkpointing: its backward pass would run the cached "
                "modules once more. Call disable_gradient_checkpointing(), sample under torch.no_grad(), or disable() "
                "on the handle to train"
            )
        if self._branch is not None:  # the last call was interrupted, and its end never seen
            self._abandon_call()
        if host.is_replaced(model):
            host.swaps.restore()
            host.swap_units(self, model)
            self._flops.clear()
            self._abandon_call()
        try:
            self._begin_call(host, model, args, kwargs, tensors)
        except BaseException:
            self._abandon_call()
            raise

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._branch is None:
            return
        if output is None:
            self._abandon_call()
            return
        request = self._request
        assert request is not None
        if not self._visited:
            self._note_once(
                "unvisited",
                f"a call of {self.model_name} reached none of the cached modules, and nothing of it was cached: its "
                f"forward does not call {self.unit_names[0]} and the others that the spec names",
            )
        if self._updated:
            request.cache_bytes = max(request.cache_bytes, request.held_bytes(self.forecaster))
        self._branch, self._updated = None, False

    def _abandon_call(self) -> None:
        """Half a step is in the cache: whatever comes next begins a request."""
        self._tracker.reset()
        self._branch, self._updated = None, False

    def _begin_call(
        self, host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> None:
        given = host.signature.bind_partial(model, *args, **kwargs).arguments
        timestep = given.get(host.spec.timestep)
        if timestep is None:
            raise ValueError(
                f"{host.model_name} was called without its argument {host.spec.timestep!r}, by which "
                "relcache tells one denoising step from the next"
            )
        conditioning = tree_leaves([given.get(name) for name in host.spec.conditioning])
        conditioning.append(host.perturbation(model))
        loop = self._scheduler_loop()
        known = self._request.total_steps if self._request else None
        rows = _rows(given.get(host.sample))
        sample = [leaf for leaf in tree_leaves(given.get(host.sample)) if isinstance(leaf, Tensor)]
        place = self._tracker.place(timestep, conditioning, self._context, rows, loop, known, sample)
        if place.new_request or self._request is None:
            self._request = self._open_request(timestep, loop, rows)
        request = self._request
        if place.new_step:
            request.signal.append(None)
            self._full, self._doubtful = None, place.doubtful
            if place.doubtful:
                self._note_once(
                    "doubtful",
                    "the transformer was called again at a request's first timestep with the same conditioning and "
                    "another sample, which is taken for the next step. If it is a tile or a guidance branch, enable "
                    "the pipeline, use cache_context, or name what differs in the spec's conditioning",
                )
        if place.branch is not None:
            self._open_branch(host, place.branch, rows)
        else:
            self._note_once(
                "repeated",
                "the transformer was called again within a step with the same conditioning (tiles of one picture, or "
                "guidance that changes something else); only the first such call of each step is cached, the others "
                "are computed in full",
            )
        forgotten = self._tracker.forget_oldest_branch()
        if forgotten is not None:
            request.branches.pop(forgotten, None)
            self._note_once(
                "branches",
                f"the conditioning changed more than {MOST_BRANCHES} times within a request; each change is computed "
                "in full, because it looks like a new guidance branch",
            )
        if self._tracker.runs_backwards:
            self._note_once("backwards", "the timesteps run the wrong way, so every step is computed in full")
        key = (host.place, *((tuple(value.shape), value.dtype) for value in tensors))
        if key not in request.work:
            try:
                request.work[key] = Work(host.place, sketch((tuple(args), dict(kwargs))))
            except Exception as error:  # arguments that cannot be copied: sampling goes on, the report says so
                request.work[key] = Work(host.place, ((), {}))
                self._flops[key] = f"{type(error).__name__}: {error}"
        self._work = request.work[key]
        self._work.calls += 1

    def _open_branch(self, host: Host, name: str, rows: int) -> None:
        """Let the units act on the branch `name`; what it holds of another model, which has taken over, is dropped."""
        request = self._request
        assert request is not None
        branch = request.branches.setdefault(name, Branch([Cell() for _ in self.unit_names]))
        if branch.host != host.place:
            if branch.host is not None:
                branch.cells, branch.signal = [Cell() for _ in self.unit_names], None
            branch.host = host.place
        self._branch, self._rows, self._visited = branch, rows, False
        self.serial += 1

    def _open_request(self, timestep: Any, loop: Loop | None, batch: int) -> Request:
        total = self._num_inference_steps
        if loop is not None:
            total = len(loop.timesteps) - index_in(loop.timesteps, timestep, self.hosts[0].spec.time_runs)
        if total is None and self.schedule.full_last:
            raise ValueError(
                f"full_last={self.schedule.full_last} needs the number of steps: enable the pipeline instead of the "
                "bare transformer, or pass num_inference_steps to relcache.enable"
            )
        if total is not None:
            self.schedule.check(total)
        return Request(self.schedule.start(), total, batch)

    def _scheduler_loop(self) -> Loop | None:
        scheduler = getattr(self._pipeline() if self._pipeline is not None else None, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, Tensor):
            return None
        index = getattr(scheduler, "step_index", None)
        if index is None and hasattr(scheduler, "step_index"):
            index = -1
        if self._loop is None or self._loop.timesteps is not timesteps:
            self._loop = Loop(timesteps, index, len(torch.unique(timesteps)) < len(timesteps))
        return self._loop._replace(step_index=index)

    # One unit of a transformer: what its runner asks

    @property
    def is_active(self) -> bool:
        """Whether a call is in progress that is to be cached."""
        return self._branch is not None

    def visit(self, index: int, inputs: list[Tensor | None]) -> Visit:
        """Whether the unit `index`, given `inputs`, is skipped; the first unit of a step decides for it."""
        branch, request = self._branch, self._request
        assert branch is not None
        assert request is not None
        assert self._work is not None
        self._visited = True
        layout = self._parts[index].layout
        inputs = [None if input is None else to_rows(input, layout, self._rows) for input in inputs]
        shape = shape_of(inputs)
        cell = branch.cells[index]
        if not cell.is_intact:
            self._changed_in_place.add(index)
            branch.cells[index] = cell = Cell()
        has_history = cell.full_steps >= self.forecaster.full_steps_needed and cell.shape == shape
        if self._full is None:
            self._full = self._decide(index, branch, _stream(inputs, 0), has_history)
            if self._full and self._doubtful:  # what is cached may be another loop's
                for known in request.branches.values():
                    known.cells, known.signal = [Cell() for _ in self.unit_names], None
                cell = branch.cells[index]
        if not self._full:
            if has_history:
                self._work.skipped[index] += 1
                return Visit(inputs, cell, True)
            request.fallbacks["module without history or of another shape: computed in full"] += 1
        if cell.step == request.step:
            raise TypeError(
                f"{self.unit_names[index]} was called twice in one forward; relcache caches modules that a forward "
                "calls once"
            )
        if cell.shape != shape:
            branch.cells[index] = cell = Cell(shape)
            branch.signal = None if index in self._first_units else branch.signal
        return Visit(inputs, cell, False)

    def forecast(self, index: int, visit: Visit) -> Any:
        """The output of a skipped unit, in the form in which it was returned last."""
        request, cell, layout = self._request, visit.cell, self._parts[index].layout
        assert request is not None
        outputs = []
        for stream in cell.streams:
            forecast = self.forecaster.forecast(stream.state, request.step, _stream(visit.inputs, stream.source))
            if forecast.fallback is not None:
                request.fallback_codes.append(forecast.fallback)
            output = forecast.output.clone() if index in self._changed_in_place else forecast.output
            outputs.append(from_rows(output, layout))
        if cell.form is None:
            return outputs[0]
        return tuple(None if place is None else outputs[place] for place in cell.form)

    def keep(self, index: int, visit: Visit, output: Any) -> None:
        """Hand a full output to the forecaster."""
        request, branch, cell, inputs = self._request, self._branch, visit.cell, visit.inputs
        assert request is not None
        assert branch is not None
        layout, copy = self._parts[index].layout, index in self._changed_in_place
        tensors, form = self._outputs(index, output)
        if not cell.streams:
            cell.form = form
            cell.streams = [Stream(_source(place, inputs)) for place, _ in tensors]
        for stream, (_, tensor) in zip(cell.streams, tensors, strict=True):
            kept = tensor.detach().clone() if copy else tensor.detach()
            rows = to_rows(kept, layout, self._rows)
            stream.state = self.forecaster.update(stream.state, request.step, _stream(inputs, stream.source), rows)
            stream.output = see(kept)
        cell.full_steps, cell.step = cell.full_steps + 1, request.step
        self._updated = True
        if index in self._first_units and self.schedule.needs_signal:
            branch.signal = self.forecaster.expansion.extend(branch.signal, request.step, _stream(inputs, 0))

    def _outputs(self, index: int, output: Any) -> tuple[list[tuple[int, Tensor]], list[int | None] | None]:
        """The tensors of an output, each with its place in it, and the form that `Cell.form` describes."""
        if isinstance(output, Tensor):
            return [(0, output)], None
        several = isinstance(output, (tuple, list)) and all(isinstance(entry, (Tensor, type(None))) for entry in output)
        if not several or not len(self._parts[index].streams):
            kinds = ", ".join(type(entry).__name__ for entry in output) if isinstance(output, (tuple, list)) else ""
            raise TypeError(
                f"{self.unit_names[index]} returned {type(output).__name__}{f' of {kinds}' if kinds else ''}; a cached "
                "module returns one tensor, joint attention (relcache.joint in the spec) a tuple of tensors"
            )
        tensors = [(place, entry) for place, entry in enumerate(output) if entry is not None]
        places = iter(range(len(tensors)))
        return tensors, [None if entry is None else next(places) for entry in output]

    def _decide(self, index: int, branch: Branch, input: Tensor, has_history: bool) -> bool:
        """Whether the present step is full; asked by the first unit of its first call."""
        request, schedule = self._request, self.schedule
        assert request is not None
        step = request.step
        error, forced = None, not has_history
        if has_history and schedule.wants_signal(step):
            if index not in self._first_units or branch.signal is None:
                request.fallbacks["first module did not run: full step"] += 1
                forced = True
            elif not math.isfinite(error := self._signal_error(branch.signal, step, input)):
                request.fallbacks["signal not finite: full step"] += 1
                self._note_once("signal", "the error signal was NaN or infinite; such steps are computed in full")
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
        predicted = weighted_sum(ladder.terms, self.forecaster.expansion.coefficients(ladder, step))
        numerator = sum_absolute(input - predicted)
        denominator = sum_absolute(input)
        return float(self.schedule.error(numerator, denominator))  # the step's one host synchronisation

    # The record

    def _note_once(self, key: str, text: str) -> None:
        if key not in self._notes:
            self._notes[key] = text
            warnings.warn(f"relcache: {text}", stacklevel=2)

    def _count(self, key: Any, work: Work) -> Flops | str:
        if key not in self._flops:
            host = self.hosts[work.host]
            model = host.model()
            if model is None:
                return "the model is gone"
            try:
                example = work.example
                names = [name for modules in host.unit_modules for name in modules]
                self._flops[key] = without_values(lambda copied: count_modules(copied(model), names, *copied(example)))
            except Exception as error:  # a forward that cannot run on the meta device: the report says so
                self._flops[key] = f"{type(error).__name__}: {error}"
        return self._flops[key]

    def _unit_flops(self, count: Flops, host: int, index: int) -> int:
        modules = self.hosts[host].unit_modules[index - self.hosts[host].first_unit]
        return sum(count.modules[name] for name in modules)

    def held_by(self, host: Host, inputs: dict[str, Any], branches: int) -> int:
        """Bytes that the cache would hold after full steps with arguments of the shapes of `inputs`.

        A copy of the model is sampled on the meta device by a session of its own; nothing is computed.
        """
        model = host.model()
        if model is None:
            raise RuntimeError("the model is gone")

        def fill(copied: Callable[[Any], Any]) -> int:
            copy = copied(model)
            session = Session([(host.name, copy, host.spec)], self.forecaster, self.schedule, self.method)
            session._fill(copy, copied(inputs), branches)
            request = session._request
            assert request is not None
            return request.held_bytes(self.forecaster)

        return without_values(fill)

    def _fill(self, model: nn.Module, inputs: dict[str, Any], branches: int) -> None:
        """Make as many full steps with a copy without values as fill the cache."""
        host = self.hosts[0]
        for unit in host.spec.units(model):
            if not unit.part.streams and not unit.part.entries:
                module = next(iter(unit.modules.values()))
                module.forward = _or_like_its_input(module.forward)
        host.swap_units(self, model)
        rows = _rows(inputs.get(host.sample))
        self._request, self._work = Request(None, None, rows), Work(host.place, ((), {}))
        for _ in range(self.forecaster.expansion.order + 1):
            self._request.signal.append(None)
            self._full = True
            for branch in range(branches):
                self._open_branch(host, str(branch), rows)
                model(**inputs)

    @property
    def last_call(self) -> tuple[int, int]:
        """Rows of the last request's batch and the number of its branches, (1, 1) before the first."""
        request = self._request
        return (request.batch, max(len(request.branches), 1)) if request is not None else (1, 1)

    def report(self) -> Report:
        """The record of the present or last request. Counting FLOPs is done here, on the meta device."""
        request = self._request or Request(None, None, 0)
        notes = list(self._notes.values())
        flops = full_flops = 0
        countable = True
        for key, work in request.work.items():
            count = self._count(key, work)
            if isinstance(count, str):
                notes.append(f"FLOPs could not be counted: {count}")
                countable = False
                continue
            full_flops += work.calls * count.total
            flops += work.calls * count.total
            flops -= sum(times * self._unit_flops(count, work.host, index) for index, times in work.skipped.items())
        shared = self.schedule.needs_signal and request.batch > 1
        return Report(
            method=self.method,
            forecaster=str(self.forecaster),
            schedule=str(self.schedule),
            model=self.model_name,
            modules=len(self.unit_names),
            steps=len(request.signal),
            nfc=len(request.full_steps),
            full_steps=list(request.full_steps),
            signal=list(request.signal),
            branches=list(request.branches),
            batch=request.batch,
            decision="one decision for the whole batch" if shared else "decisions independent of the batch",
            flops=flops if countable and request.work else None,
            full_flops=full_flops if countable and request.work else None,
            cache_bytes=request.cache_bytes,
            fallbacks=request.fallback_counts(),
            notes=notes,
        )


def _or_like_its_input(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, or a tensor like its input where it cannot run without values: experts chosen by routing."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            return torch.empty_like(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

    return run


def _rows(sample: Any) -> int:
    """Samples in the argument that holds the noisy sample: a tensor with the batch first, or a list of samples."""
    if isinstance(sample, (list, tuple)):
        return len(sample)
    return sample.shape[0] if isinstance(sample, Tensor) and sample.ndim else 1


def _stream(inputs: list[Tensor | None], place: int) -> Tensor:
    features = inputs[place]
    if features is None:
        raise TypeError("a cached module was called without a tensor of features as its first input")
    return features


def _source(place: int, inputs: list[Tensor | None]) -> int:
    """Which input an output goes with: the one of its own place; an output beyond them goes with the first."""
    return place if place < len(inputs) and inputs[place] is not None else 0
