"""Cache the calls of a pipeline's transformers: find the position of each call, and open it in the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.checks import bytes_from
from relcache.engine.cache import Cache
from relcache.engine.gauge import Gauge
from relcache.engine.host import Condition, Host, refuse_training, wants_gradient
from relcache.engine.state import Request
from relcache.memory.choice import NOT_WHERE_COMPILED, Call, Chooser, Way, has_own_memory
from relcache.method import Method
from relcache.models.coarse import coarsened
from relcache.models.spec import ModelSpec, Part
from relcache.session.attachment import Attachment
from relcache.session.correction import Correction
from relcache.session.limit import Limit
from relcache.session.record import Record
from relcache.session.report import Report
from relcache.session.requests import Options, Requests
from relcache.session.runs import Run
from relcache.session.sharing import Sharing
from relcache.session.turn import Turn
from relcache.storage.offload import SHARED_MEMORY
from relcache.storage.store import Store


class Session:
    """Caching on the transformers of one pipeline.

    Args:
        models: name in the pipeline, transformer and spec of each. They share one count of steps: an expert that takes
            over midway continues the other's count.
        method: the forecaster, schedule and corrector.
        options: those of `relcache.enable` besides the method.
        pipeline: the diffusers pipeline of the transformers, referenced weakly; None if unknown.
        scheduler: the scheduler of a hand-written loop, referenced weakly.

    Raises:
        ValueError: a model has blocks that cannot be cached as a whole.
    """

    def __init__(
        self,
        models: Sequence[tuple[str, nn.Module, ModelSpec]],
        method: Method,
        options: Options,
        *,
        pipeline: Any = None,
        scheduler: Any = None,
    ):
        forecaster, schedule = method.forecaster, method.schedule
        self.method, self._free_at_end, self._turn = method, options.free_at_end, Turn()
        self.specs = [spec for *_, spec in models]
        self.hosts = [Host(name, model, spec, index, 0) for index, (name, model, spec) in enumerate(models)]
        self.model_name = " and ".join(dict.fromkeys(host.model_name for host in self.hosts))
        self.way = Way(method.granularity, method.cache_dtype, method.offload)
        self.memory_limit = bytes_from(method.memory_limit) if method.memory_limit is not None else None
        self.chooser = Chooser(self.way, options.fixed, forecaster, schedule)
        self.requests = Requests(method, options, self.hosts[0].spec.time_runs, pipeline, scheduler)
        self._name_units()
        self.cache = Cache(
            *self._units(),
            self.requests.note,
            Store(self.way.cache_dtype, self.way.offload),
            schedule.needs_signal,
        )
        self._limit = (
            Limit(self.memory_limit, self.chooser, self.requests, self.cache) if self.memory_limit is not None else None
        )
        self._record = Record(self.model_name, self.hosts)
        self._correction = Correction(method.corrector is not None, self.requests)
        self._attachment = Attachment(self.hosts, self.cache, self.requests, self._correction)
        self._sharing = Sharing(options.ranks, self.cache, self.requests, self.memory_limit is not None)
        self._sharing.look(self.hosts[0], self.hosts[0].present_model())
        self.requests.rules_of(method)

    def _name_units(self) -> None:
        """Set the units of the present granularity, in the order of the transformers."""
        self.unit_names: list[str] = []
        for host, spec in zip(self.hosts, self.specs, strict=True):
            host.describe(coarsened(spec, host.present_model(), self.way.granularity), len(self.unit_names))
            prefix = f"{host.name}." if len(self.hosts) > 1 else ""
            self.unit_names += [prefix + unit for unit in host.unit_names]

    def _units(self) -> tuple[list[str], list[Part], dict[int, Gauge]]:
        parts = [part for host in self.hosts for part in host.parts]
        return self.unit_names, parts, {host.first_unit: host.gauge for host in self.hosts}

    def _switch_to(self, way: Way) -> None:
        """Store features in another `way` from the next call on. Drop the cache, and continue the record."""
        past, self.way = self.way, way
        if way == past:
            return
        is_regrouped = way.granularity != past.granularity
        if is_regrouped:
            for host in self.hosts:
                host.swaps.restore()
            self._name_units()
        self.cache.arrange(*self._units(), Store(self.way.cache_dtype, self.way.offload))
        for run in self.requests.all:
            self.cache.free(run.request)
        if is_regrouped and self.attached:
            for host in self.hosts:
                host.swap_units(self.cache, host.present_model())

    def serve(self, method: Method) -> None:
        """Let requests have a `method` of their own: read the error, and watch schedulers, if it wants them.

        Raises:
            RuntimeError: the session is not attached.
            ValueError: the method cannot be had beside the session's own.
        """
        if not self.attached:
            raise RuntimeError("this handle was disabled: call relcache.enable(...) again")
        if self.memory_limit is not None:
            raise ValueError("a memory limit is for the enabled method: leave it out to give requests other methods")
        if method.made_for is not None:
            method.made_for.check({host.name: host.present_model() for host in self.hosts}, self.requests.scheduler)
        self.requests.rules_of(method)
        with self._turn.alone() as interrupted:
            if interrupted:
                self._abandon_call()
            if method.corrector is not None and not self._correction.is_wanted:
                self._correction.is_wanted = True
                self._correction.attach(self.requests.scheduler)
            if method.schedule.needs_signal and not self.cache.reads_error:
                self.cache.read_error()
                for host in self.hosts:
                    host.swaps.restore()
                    host.swap_units(self.cache, host.present_model())

    # Attaching and detaching

    @property
    def attached(self) -> bool:
        """Whether the session acts on its models."""
        return self._attachment.is_active

    def attach(self, earlier: Sequence[Session] = ()) -> None:
        """Attach this session and detach `earlier` ones. If this fails, nothing changes."""
        with ExitStack() as undo:
            for session in earlier:
                undo.callback(session._attachment.suspend())
            undo.callback(self.detach)
            self._attachment.attach(self._before, self._after, self._end_request)
            undo.pop_all()
        for session in earlier:
            session.detach()

    def detach(self) -> None:
        """Detach from the models and drop the cache, but keep the last request's record. A second call does nothing."""
        with self._turn.alone() as interrupted:
            self._attachment.detach()
            self.requests.check_numbers(self.requests.run)
            self._free(interrupted)
            self.requests.runs.remove()

    def free(self) -> None:
        """Drop the features of all requests, but keep their records. End a call that was interrupted unnoticed."""
        with self._turn.alone() as interrupted:
            self._free(interrupted)

    def _free(self, interrupted: bool) -> None:
        if interrupted:
            self._abandon_call()
        for run in self.requests.all:
            self.cache.free(run.request)
            run.tracker.release()

    def reset(self) -> None:
        """Drop the cache and records of this thread's requests; the next call begins a new one."""
        with self._turn.alone() as interrupted:
            if interrupted:
                self._abandon_call()
            self.requests.forget()
            self.cache.request = None

    def _end_request(self, model: nn.Module, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """End the caller's request. Diffusers' pipelines call this after their loop."""
        run = self.requests.end(model) if not self._turn.is_mine else None
        if run is not None:
            self.requests.check_numbers(run)
            if self._free_at_end:
                self.cache.free(run.request)
        return original(*args, **kwargs)

    # One call of a transformer

    def _before(self, host: Host, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if any(tensor.device.type == "meta" for tensor in tensors):
            return  # a shape-only call, no denoising step
        refuse_training(model)
        if self._turn.take():  # the last call was interrupted unnoticed
            self._abandon_call()
        try:
            condition = host.condition_of(model)
            if condition.replaced:
                host.swaps.restore()
                host.swap_units(self.cache, model)
                self._record.clear_counts()
                for run in self.requests.all:
                    self._drop(run)
            if condition.compiled and torch.is_grad_enabled() and wants_gradient(model, tensors):
                raise RuntimeError(
                    "a gradient is wanted of a compiled model with relcache enabled, but cached steps have none: "
                    "sample under torch.no_grad(), or call disable() on the handle to train"
                )
            self._begin_call(host, model, condition, args, kwargs, tensors)
            if condition.compiled and self.cache.is_active:
                if any(self.cache.store.moves(tensor.device) for tensor in tensors):
                    raise ValueError(NOT_WHERE_COMPILED)
                self.cache.plan_call(host.units, lambda gauge: gauge.run_up(model, model.forward, args, kwargs))
        except BaseException as error:
            self.requests.ranks.report(error)
            self._abandon_call()
            self._turn.release()
            raise

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._turn.is_mine:
            return
        try:
            if output is None:
                self.requests.ranks.report(sys.exc_info()[1])
                self._abandon_call()
            else:
                self._end_call(output)
        except BaseException as error:
            self.requests.ranks.report(error)
            self._abandon_call()
            raise
        finally:
            self._turn.release()

    def _end_call(self, output: Any) -> None:
        """End a call that has returned `output`."""
        run = self.requests.run
        if run is None or run.request is None:
            return
        run.request.watch(output)
        run.request.is_exact &= run.request.full is not False or not self.cache.is_active
        self._correction.attach(run.scheduler() if run.scheduler is not None else None)
        if self.cache.is_active:
            self._close_call(run, run.request)
        if run.request.has_ended:
            self.requests.check_numbers(run)

    def _close_call(self, run: Run, request: Request) -> None:
        if not self.cache.close_call():
            self.requests.note(
                "unvisited",
                f"a call of {self.model_name} reached none of the cached modules, so it was not cached: its "
                f"forward does not call {self.unit_names[0]} or the other modules in the spec",
            )
        if self._free_at_end and request.ended:
            self.cache.free(request, request.ended)
            run.tracker.release()

    def _abandon_call(self) -> None:
        """Discard the half-finished step; the next call starts a new request."""
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
        condition: Condition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> None:
        arguments = host.arguments(args, kwargs)
        signs, position = self.requests.locate(host, model, arguments, condition.hooks)
        if position.new_request or not self._sharing.knows(host):
            self._sharing.look(host, model, condition.compiled)
        sizes = tuple((tuple(value.shape), value.dtype) for value in tensors)
        shapes = (host.index, signs.form, *sizes, *(other for other in signs.others if not isinstance(other, Tensor)))
        chosen = None
        if self._limit is not None and position.branch is not None:
            call = Call(host, self.specs[host.index], shapes, arguments)
            movable = any(has_own_memory(tensor.device) for tensor in tensors)
            way, chosen = self._limit.way_for(call, position, movable, self.way)
            self._switch_to(way)
        device = next((tensor.device for tensor in signs.sample), torch.device("cpu"))
        request = self.cache.request = self.requests.open(signs, position, shapes, device)
        if chosen is not None:
            request.notes["memory"] = chosen
        work = self._record.work(request, host, (self.way.granularity, *shapes), sizes, args, kwargs)
        if self.cache.store.offload == "cpu" and all(tensor.device.type in SHARED_MEMORY for tensor in tensors):
            self.requests.note("offload")
        request.calls.add((host.index, position.branch, signs.rows))
        if position.branch is not None:
            valid_tokens = partial(host.spec.valid_tokens, arguments)
            self.cache.open_call(host.index, position.branch, signs.rows, work, valid_tokens)
        else:
            self.cache.open_uncached_call()
        if position.dropped is not None:
            request.branches.pop(position.dropped, None)
            self.requests.note("branches")

    # The record

    @property
    def is_movable(self) -> bool:
        """Whether features are or will be on a device with a memory of its own."""
        device = getattr(self.requests.pipeline, "_execution_device", None)
        weights = (weight.device for host in self.hosts for weight in host.present_model().parameters())
        return any(map(has_own_memory, weights)) or (isinstance(device, torch.device) and has_own_memory(device))

    def states(self) -> list[tuple[str, str, Any]]:
        """Return branch, unit and the forecaster's state for each cached stream of features."""
        return [
            (name, f"{unit}[{index}]" if index else unit, self.cache.store.get(stream.state))
            for name, branch in self.requests.last.branches.items()
            for unit, cell in zip(self.unit_names, branch.cells, strict=False)
            for index, stream in enumerate(cell.streams)
        ]

    def notes(self) -> list[str]:
        """Return the notes on the present or last request."""
        self._correction.remark(self.requests.last)
        return list(self.requests.last.notes.values())

    def report(self, counts: bool = True) -> Report:
        """Return the report of the present or last request. FLOPs are counted here, on the meta device, if `counts`."""
        self.requests.check_numbers(self.requests.run)
        problem = self._attachment.replaced()
        if problem is not None:
            self.requests.note("replaced", problem)
        self._correction.remark(self.requests.last)
        return self._record.report(self.requests.last, len(self.unit_names), counts)
