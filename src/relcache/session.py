"""Joins what, when and where: counts steps, keeps branches apart, asks the schedule, calls the forecaster, records.

One session belongs to one enabled transformer. It knows forecasters, schedules and specs by their base classes only.
"""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relcache.expansion import Ladder, sum_absolute, weighted_sum
from relcache.flops import Flops, count_modules, to_meta
from relcache.forecasters.base import Forecaster
from relcache.models.base import ModelSpec
from relcache.patch import Patch
from relcache.report import Report
from relcache.request import Branch, Cell, Request, Work
from relcache.schedules.base import Schedule
from relcache.tracker import MOST_BRANCHES, Tracker, index_in, see


class Session:
    """Caching on one transformer.

    Args:
        model: the transformer.
        spec: where its modules are.
        forecaster: what a skipped module returns.
        schedule: when a step is computed in full.
        method: the name that the report shows.
        pipeline: the diffusers pipeline that the transformer belongs to, if it is known; kept weakly.
        num_inference_steps: steps of each request, where no pipeline tells.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        forecaster: Forecaster,
        schedule: Schedule,
        method: str,
        pipeline: Any = None,
        num_inference_steps: int | None = None,
    ):
        # The model holds the session by its patched forwards; the session holds the model weakly, so that a handle kept
        # for its report does not keep the weights.
        self._model = weakref.ref(model)
        self.model_name = type(model).__name__
        self.spec, self.method = spec, method
        self.forecaster, self.schedule = forecaster, schedule
        self._units = spec.units(model)
        self.unit_names = [unit.name for unit in self._units]
        self._num_inference_steps = num_inference_steps
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self._signature = inspect.signature(type(model).forward)
        self._tracker = Tracker(spec.time_runs)
        self._context: str | None = None
        self._request: Request | None = None
        self._branch: Branch | None = None  # of the call in progress; None between calls
        self._work: Work | None = None
        self._full: bool | None = None  # decision of the present step; None until its first module asks
        self._changed_in_place: set[int] = set()  # modules whose outputs others write into: these are copied
        self._updated = False  # whether the call in progress changed a cell
        self._paused = False
        self._flops: dict[Any, Flops | str] = {}
        self._notes: dict[str, str] = {}
        self._patch = Patch()
        self.attached = False

    # Attaching and detaching

    def attach(self) -> None:
        """Swap the modules' forwards and watch the model's."""
        model = self._model()
        assert model is not None
        self.attached = True
        self._patch.watch(model, self._before, self._after)
        for index, unit in enumerate(self._units):
            self._patch.swap(unit.module, "forward", self._module_runner(index))
        self._units = []
        if hasattr(model, "cache_context"):
            self._patch.swap(model, "cache_context", self._enter_context)

    def detach(self) -> None:
        """Put every forward back and drop the cache; the record of the last request stays. Twice is once."""
        self.attached = False
        self._patch.restore()
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

    # One call of the transformer

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if self._paused or any(tensor.device.type == "meta" for tensor in tensors):
            return  # a count of FLOPs, not a denoising step
        if model.training and torch.is_grad_enabled():
            raise RuntimeError(
                "relcache is enabled on a model in training mode: cached steps have no gradients. "
                "Call model.eval() to sample, or disable() on the handle to train"
            )
        if self._branch is not None:  # the last call was interrupted, and its end never seen
            self._abandon_call()
        try:
            self._begin_call(model, args, kwargs, tensors)
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
        if self._updated:
            request.cache_bytes = max(request.cache_bytes, request.held_bytes(self.forecaster))
        self._branch, self._updated = None, False

    def _abandon_call(self) -> None:
        """Half a step is in the cache: whatever comes next begins a request."""
        self._tracker.reset()
        self._branch, self._updated = None, False

    def _begin_call(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> None:
        given = self._signature.bind_partial(model, *args, **kwargs).arguments
        timestep = given.get(self.spec.timestep)
        if timestep is None:
            raise ValueError(
                f"{self.model_name} was called without its argument {self.spec.timestep!r}, by which "
                "relcache tells one denoising step from the next"
            )
        conditioning = [given.get(name) for name in self.spec.conditioning]
        timesteps = self._scheduler_timesteps()
        known = self._request.total_steps if self._request else None
        rows = tensors[0].shape[0] if tensors and tensors[0].ndim else 1
        place = self._tracker.place(timestep, conditioning, self._context, rows, timesteps, known)
        if place.new_request or self._request is None:
            self._request = self._open_request(timestep, timesteps, rows)
        request = self._request
        if place.new_step:
            request.signal.append(None)
            self._full = None
        self._branch = request.branches.setdefault(place.branch, Branch([Cell() for _ in self.unit_names]))
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
        key = tuple((tuple(value.shape), value.dtype) for value in tensors)
        if key not in request.work:
            request.work[key] = Work(to_meta((tuple(args), dict(kwargs))))
        self._work = request.work[key]
        self._work.calls += 1

    def _open_request(self, timestep: Any, timesteps: Tensor | None, batch: int) -> Request:
        total = self._num_inference_steps
        if timesteps is not None:
            total = len(timesteps) - index_in(timesteps, timestep)
        if total is None and self.schedule.full_last:
            raise ValueError(
                f"full_last={self.schedule.full_last} needs the number of steps: enable the pipeline instead of the "
                "bare transformer, or pass num_inference_steps to relcache.enable"
            )
        if total is not None:
            self.schedule.check(total)
        return Request(self.schedule.start(), total, batch)

    def _scheduler_timesteps(self) -> Tensor | None:
        pipeline = self._pipeline() if self._pipeline is not None else None
        timesteps = getattr(getattr(pipeline, "scheduler", None), "timesteps", None)
        return timesteps if isinstance(timesteps, Tensor) else None

    # One module of the transformer

    def _module_runner(self, index: int) -> Callable[..., Any]:
        def run(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            branch = self._branch
            if branch is None or self._paused:
                return original(*args, **kwargs)
            input = (args[0] if args else kwargs["hidden_states"]).detach()
            if self._full is None:
                self._full = self._decide(index, branch, input)
            request, cell = self._request, branch.cells[index]
            assert request is not None
            assert self._work is not None
            shape = (input.shape, input.dtype, input.device)
            if not cell.is_intact:
                self._changed_in_place.add(index)
                branch.cells[index] = cell = Cell()
            if not self._full:
                if cell.full_steps >= self.forecaster.full_steps_needed and cell.shape == shape:
                    forecast = self.forecaster.forecast(cell.state, request.step, input)
                    if forecast.fallback is not None:
                        request.fallback_codes.append(forecast.fallback)
                    self._work.skipped[index] += 1
                    return forecast.output.clone() if index in self._changed_in_place else forecast.output
                request.fallbacks["module without history or of another shape: computed in full"] += 1
            output = original(*args, **kwargs)
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"the spec of {self.spec.class_name} caches {self.unit_names[index]}, which returned "
                    f"{type(output).__name__}; a cached module returns one tensor"
                )
            if cell.step == request.step:
                raise TypeError(
                    f"{self.unit_names[index]} was called twice in one forward; relcache caches modules that a forward "
                    "calls once"
                )
            if cell.shape != shape:
                branch.cells[index] = cell = Cell(shape=shape)
                branch.signal = None if index == 0 else branch.signal
            kept = output.detach()
            if index in self._changed_in_place:
                kept = kept.clone()
            cell.state = self.forecaster.update(cell.state, request.step, input, kept)
            cell.full_steps, cell.step, cell.output = cell.full_steps + 1, request.step, see(kept)
            self._updated = True
            if index == 0 and self.schedule.needs_signal:
                branch.signal = self.forecaster.expansion.extend(branch.signal, request.step, input)
            return output

        return run

    def _decide(self, index: int, branch: Branch, input: Tensor) -> bool:
        """Whether the present step is full; asked by the first module of its first call."""
        request, schedule = self._request, self.schedule
        assert request is not None
        step, cell = request.step, branch.cells[index]
        has_history = (
            cell.full_steps >= self.forecaster.full_steps_needed
            and cell.shape == (input.shape, input.dtype, input.device)
        )  # fmt: skip
        error, forced = None, not has_history
        if has_history and schedule.wants_signal(step):
            if index != 0 or branch.signal is None:
                request.fallbacks["first module did not run: full step"] += 1
                forced = True
            elif not math.isfinite(error := self._signal_error(branch.signal, step, input)):
                request.fallbacks["signal not finite: full step"] += 1
                self._note_once("signal", "the error signal was NaN or infinite; such steps are computed in full")
                error, forced = None, True
        wants = schedule.wants_full(request.schedule_state, step, error)
        if request.total_steps is not None and request.total_steps - step <= schedule.full_last:
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
            model = self._model()
            if model is None:
                return "the model is gone"
            self._paused = True
            try:
                args, kwargs = work.example
                self._flops[key] = count_modules(model, self.unit_names, args, kwargs)
            except Exception as error:  # a forward that cannot run on the meta device: the report says so
                self._flops[key] = f"{type(error).__name__}: {error}"
            finally:
                self._paused = False
        return self._flops[key]

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
            flops -= sum(times * count.modules[self.unit_names[index]] for index, times in work.skipped.items())
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
