"""Joins what, when and where: whose call it is, which step and branch, what is kept, forecast and recorded.

One session belongs to one enabled pipeline, and to each transformer in it; each caller of a transformer has a run of
its own. It knows forecasters, schedules and specs by their base classes only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.correctors import Corrector
from relcache.engine.cache import Cache
from relcache.engine.gauge import Gauge
from relcache.engine.host import Host, refuse_cache, refuse_training, wants_gradient
from relcache.engine.patch import Patch
from relcache.engine.state import Request
from relcache.forecasters.base import Forecaster
from relcache.memory.choice import NOT_WHERE_COMPILED, Chooser, Way, has_own_memory
from relcache.models.coarse import coarsened
from relcache.models.origin import Origin
from relcache.models.spec import ModelSpec, Part
from relcache.schedules.base import Schedule
from relcache.session.caller import is_around
from relcache.session.correction import Correction
from relcache.session.limit import Limit
from relcache.session.record import Record
from relcache.session.report import Report
from relcache.session.requests import Requests
from relcache.session.runs import Run
from relcache.session.turn import Turn
from relcache.storage.offload import SHARED_MEMORY
from relcache.storage.store import Store

AS_IT_IS = Way()


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
        way: how features are held.
        memory_limit: bytes that they may take on the device; the way is chosen so that they do.
        fixed: names of the fields of `way` that are not chosen.
        free_at_end: whether a branch's features are dropped at the end of its last step.
        scheduler: the one that steps a loop written by hand, kept weakly.
        corrector: how gaps between full steps are made good; None leaves them as they are.
        finer: how many times as many steps are made as a pipeline asks its scheduler for.
        made_for: the only scheduler whose steps may be cached, where the schedule was found for one.

    Raises:
        ValueError: blocks that cannot be taken whole.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module, ModelSpec]],
        forecaster: Forecaster,
        schedule: Schedule,
        method: str,
        pipeline: Any = None,
        num_inference_steps: int | None = None,
        way: Way = AS_IT_IS,
        memory_limit: int | None = None,
        fixed: Collection[str] = (),
        free_at_end: bool = False,
        scheduler: Any = None,
        corrector: Corrector | None = None,
        finer: int = 1,
        made_for: Origin | None = None,
    ):
        self.forecaster, self.schedule, self.method = forecaster, schedule, method
        self.specs = [spec for *_, spec in models]
        self.hosts = [
            Host(name, model, spec, place, 0, schedule.needs_signal) for place, (name, model, spec) in enumerate(models)
        ]
        self.model_name = " and ".join(dict.fromkeys(host.model_name for host in self.hosts))
        self.way, self.chooser, self.memory_limit = way, Chooser(way, fixed, forecaster, schedule), memory_limit
        time_runs = self.hosts[0].spec.time_runs
        self.requests = Requests(
            schedule,
            time_runs,
            pipeline,
            scheduler,
            num_inference_steps,
            free_at_end,
            forecaster.full_steps_needed,
            finer,
            made_for,
        )
        self.unit_names: list[str] = []
        self._name_units()
        self.cache = Cache(
            *self._units(), forecaster, schedule, self.requests.note, Store(way.cache_dtype, way.offload)
        )
        self._free_at_end, self._turn = free_at_end, Turn()
        self._limit = Limit(memory_limit, self.chooser, self.requests, self.cache) if memory_limit is not None else None
        self._record = Record(method, forecaster, schedule, corrector, self.model_name, self.hosts)
        self._beginnings = Patch()
        self.correction = Correction(corrector, self.requests)
        self.attached = False

    def _name_units(self) -> None:
        """Let the units be those of the present granularity, one transformer's after another's."""
        self.unit_names = []
        for host, spec in zip(self.hosts, self.specs, strict=True):
            host.describe(coarsened(spec, host.present_model(), self.way.granularity), len(self.unit_names))
            prefix = f"{host.name}." if len(self.hosts) > 1 else ""
            self.unit_names += [prefix + unit for unit in host.unit_names]

    def _units(self) -> tuple[list[str], list[Part], dict[int, Gauge]]:
        parts = [part for host in self.hosts for part in host.parts]
        return self.unit_names, parts, {host.first_unit: host.gauge for host in self.hosts}

    def hold(self, way: Way) -> None:
        """Hold features in another way from the next call on; what is cached is dropped, the record goes on."""
        past, self.way = self.way, way
        if way.granularity != past.granularity:
            for host in self.hosts:
                host.swaps.restore()
            self._name_units()
        if way != past:
            self.cache.arrange(*self._units(), Store(way.cache_dtype, way.offload))
            for run in self.requests.all:
                self.cache.free(run.request)
        if way.granularity != past.granularity and self.attached:
            for host in self.hosts:
                host.swap_units(self.cache, host.present_model())

    # Attaching and detaching

    def attach(self) -> None:
        """Swap the units' forwards and watch the models', or leave all as it was where that fails."""
        try:
            for host in self.hosts:
                model = host.present_model()
                self._watch(host, model)
                if hasattr(model, "cache_context"):
                    host.contexts.swap(model, "cache_context", self._enter_context)
                if hasattr(model, "_reset_stateful_cache"):
                    host.contexts.swap(model, "_reset_stateful_cache", partial(self._end_request, model))
                if hasattr(model, "enable_cache"):
                    host.contexts.swap(model, "enable_cache", refuse_cache)
                host.swap_units(self.cache, model)
            pipeline = self.requests.pipeline
            if callable(getattr(pipeline, "progress_bar", None)):  # what diffusers' pipelines call before their loop
                self._beginnings.swap(pipeline, "progress_bar", self._see_beginning)
            self.requests.make_finer(self._beginnings)
            self.correction.join(self.requests.scheduler)
        except BaseException:
            self.detach()
            raise
        self.attached = True

    def _watch(self, host: Host, model: nn.Module) -> None:
        """Be told of the model's calls, also when it is compiled later."""

        def compile(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            host.watch.restore()
            try:
                original(*args, **kwargs)
            finally:
                self._watch(host, model)

        host.watch.watch(model, partial(self._before, host), self._after)
        host.watch.swap(model, "compile", compile)

    def let_go(self) -> Callable[[], None]:
        """Put every forward back, and keep the cache; the function returned puts the very replacements in again."""
        self.attached = False
        resumes = [*(host.suspend() for host in self.hosts), self._beginnings.suspend(), self.correction.suspend()]

        def resume() -> None:
            for each in reversed(resumes):
                each()
            self.attached = True

        return resume

    def detach(self) -> None:
        """Put every forward back and drop the cache; the record of the last request stays. Twice is once."""
        with self._turn.alone() as broken_off:
            self.attached = False
            for host in self.hosts:
                host.let_go()
            self._beginnings.restore()
            self.correction.let_go()
            if self.requests.run is not None:
                self.requests.check_numbers(self.requests.run)
            self._free(broken_off)
            self.requests.runs.forget()

    def free(self) -> None:
        """Drop the features of all requests; their records stay. A call that was broken off unseen ends here."""
        with self._turn.alone() as broken_off:
            self._free(broken_off)

    def _free(self, broken_off: bool) -> None:
        if broken_off:
            self._abandon_call()
        for run in self.requests.all:
            self.cache.free(run.request)
            run.tracker.let_go()

    def reset(self) -> None:
        """Drop cache and record of this thread's requests: the next call begins one."""
        with self._turn.alone() as broken_off:
            if broken_off:
                self._abandon_call()
            self.requests.forget()
            self.cache.request = None

    @contextmanager
    def _enter_context(self, original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        token = self.requests.context.set(name)
        try:
            with original(name, *args, **kwargs) as value:
                yield value
        finally:
            self.requests.context.reset(token)

    def _end_request(self, model: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Diffusers' pipelines call this where a request has ended."""
        run = self.requests.end(model) if not self._turn.is_mine else None
        if run is not None:
            self.requests.check_numbers(run)
            if self._free_at_end:
                self.cache.free(run.request)
        return original(*args, **kwargs)

    def _see_beginning(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The enabled pipeline begins its loop: whether it still has these transformers."""
        strange = self._replaced()
        if strange is not None:
            self.requests.refuse("replaced", strange)
        return original(*args, **kwargs)

    def _replaced(self) -> str | None:
        """What is to be said where the enabled pipeline has another transformer by now."""
        held = list(vars(self.requests.pipeline).values()) if self.requests.pipeline is not None else []
        for host in self.hosts if held and self.attached else ():
            model = host.model()
            if model is None or not any(is_around(value, model) for value in held):
                return (
                    f"the pipeline's transformer is another one than the {host.model_name} that was enabled, and is "
                    "not cached: call disable() on the handle, and relcache.enable(pipeline) again"
                )
        return None

    # One call of a transformer

    def _before(self, host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if any(tensor.device.type == "meta" for tensor in tensors):
            return  # shapes only, no denoising step
        refuse_training(model)
        if self._turn.take():  # the last call was interrupted, and its end never seen
            self._abandon_call()
        try:
            condition = host.condition_of(model)
            if condition.replaced:
                host.swaps.restore()
                host.swap_units(self.cache, model)
                self._record.operations.clear()
                for run in self.requests.all:
                    self._drop(run)
            if condition.compiled and torch.is_grad_enabled() and wants_gradient(model, tensors):
                raise RuntimeError(
                    "a gradient is wanted of a compiled model with relcache enabled, and cached steps have none: "
                    "sample under torch.no_grad(), or call disable() on the handle to train"
                )
            self._begin_call(host, model, condition.hooks, args, kwargs, tensors)
            if condition.compiled and self.cache.is_active:
                if any(self.cache.store.moves(tensor.device) for tensor in tensors):
                    raise ValueError(NOT_WHERE_COMPILED)
                self.cache.settle(host.units, lambda gauge: gauge.run_up(model, model.forward, args, kwargs))
        except BaseException:
            self._abandon_call()
            self._turn.give()
            raise

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._turn.is_mine:
            return
        try:
            if output is None:
                self._abandon_call()
            else:
                self._end_call(output)
        finally:
            self._turn.give()

    def _end_call(self, output: Any) -> None:
        """A call has come to its end, with this output."""
        run = self.requests.run
        if run is None or run.request is None:
            return
        run.request.watch(output)
        run.request.is_exact &= run.request.full is not False or not self.cache.is_active
        self.correction.watch(run)
        if self.cache.is_active:
            self._close_call(run, run.request)
        if run.request.has_ended:
            self.requests.check_numbers(run)

    def _close_call(self, run: Run, request: Request) -> None:
        if not self.cache.close_call():
            self.requests.note(
                "unvisited",
                f"a call of {self.model_name} reached none of the cached modules, and nothing of it was cached: its "
                f"forward does not call {self.unit_names[0]} and the others that the spec names",
            )
        if self._free_at_end and request.ended:
            self.cache.free(request, request.ended)
            run.tracker.let_go()

    def _abandon_call(self) -> None:
        """Half a step is in the cache: the next call begins a request, and what is cached is of no use."""
        self.cache.abandon_call()
        if self.requests.run is not None:
            self._drop(self.requests.run)

    def _drop(self, run: Run) -> None:
        run.tracker.reset()
        self.cache.free(run.request)

    def _begin_call(
        self,
        host: Host,
        model: nn.Module,
        hooks: tuple[str, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> None:
        given = host.arguments(args, kwargs)
        arrival = self.requests.arrive(host, model, given, hooks)
        signs, place = arrival.signs, arrival.place
        shapes = (host.place, signs.form, *((tuple(value.shape), value.dtype) for value in tensors))
        shapes = (*shapes, *(other for other in signs.others if not isinstance(other, Tensor)))
        chosen = None
        if self._limit is not None and place.branch is not None:
            way, chosen = self._limit.keep(host, self.specs[host.place], arrival, shapes, given, tensors, self.way)
            self.hold(way)
        device = next((tensor.device for tensor in signs.sample), torch.device("cpu"))
        request = self.cache.request = self.requests.open(arrival, shapes, device)
        if chosen is not None:
            request.notes["memory"] = chosen
        work = self._record.work(request, host, (self.way.granularity, *shapes), args, kwargs)
        if self.cache.store.offload == "cpu" and all(tensor.device.type in SHARED_MEMORY for tensor in tensors):
            self.requests.note("offload")
        request.calls.add((host.place, place.branch, arrival.rows))
        if place.branch is not None:
            valid_tokens = partial(host.spec.valid_tokens, given)
            self.cache.open_call(host.place, place.branch, arrival.rows, work, valid_tokens)
        else:
            self.cache.pass_by()
        if place.forgotten is not None:
            request.branches.pop(place.forgotten, None)
            self.requests.note("branches")

    @property
    def is_movable(self) -> bool:
        """Whether features lie, or will lie, on a device with a memory of its own."""
        device = getattr(self.requests.pipeline, "_execution_device", None)
        weights = (weight.device for host in self.hosts for weight in host.present_model().parameters())
        return any(map(has_own_memory, weights)) or (isinstance(device, torch.device) and has_own_memory(device))

    # The record

    @property
    def last_call(self) -> tuple[int, int]:
        """Rows of the last request's batch and the number of its branches, (1, 1) before the first."""
        return max(self.requests.last.batch, 1), max(len(self.requests.last.branches), 1)

    def states(self) -> list[tuple[str, str, Any]]:
        """Branch, unit and state of the forecaster, for each stream of features that is kept."""
        return [
            (name, f"{unit}[{place}]" if place else unit, self.cache.store.get(stream.state))
            for name, branch in self.requests.last.branches.items()
            for unit, cell in zip(self.unit_names, branch.cells, strict=False)
            for place, stream in enumerate(cell.streams)
        ]

    @property
    def full_steps(self) -> list[int]:
        """Which steps of the last request were full."""
        return list(self.requests.last.full_steps)

    def report(self) -> Report:
        """The record of the present or last request. Counting FLOPs is done here, on the meta device."""
        if self.requests.run is not None:
            self.requests.check_numbers(self.requests.run)
        strange = self._replaced()
        if strange is not None:
            self.requests.note("replaced", strange)
        self.correction.remark(self.requests.last)
        return self._record.report(self.requests.last, len(self.unit_names))
