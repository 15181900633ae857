"""Joins what, when and where: counts steps, keeps branches apart, asks the schedule, calls the forecaster, records.

One session belongs to one enabled pipeline, and to each transformer in it. It knows forecasters, schedules and specs by
their base classes only.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.cache import Cache
from relcache.flops import Flops, count_modules
from relcache.forecasters.base import Forecaster
from relcache.gauge import Gauge
from relcache.host import Host, count_rows, refuse_cache
from relcache.memory import NOT_WHERE_COMPILED, Call, Chooser, Way, has_own_memory
from relcache.meta import sketch, without_values
from relcache.models.base import ModelSpec, Part
from relcache.models.coarse import coarsened
from relcache.offload import SHARED_MEMORY
from relcache.report import Report
from relcache.request import Request, Work
from relcache.schedules.base import Schedule
from relcache.store import Store
from relcache.tracker import MOST_BRANCHES, Loop, Placement, Tracker, index_in

Calls = dict[tuple[int, str], Call]  # by transformer and branch
AS_IT_IS = Way()
MOST_USUAL = 64  # requests whose branches are remembered
OFFLOAD_OF_NOTHING = "offload='cpu' changes nothing: the features lie in the host's memory as it is"


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
    ):
        self.forecaster, self.schedule, self.method = forecaster, schedule, method
        self.specs = [spec for *_, spec in models]
        self.hosts = [Host(name, model, spec, place, 0) for place, (name, model, spec) in enumerate(models)]
        self.model_name = " and ".join(dict.fromkeys(host.model_name for host in self.hosts))
        self.way, self.chooser, self.memory_limit = way, Chooser(way, fixed, forecaster, schedule), memory_limit
        self.unit_names: list[str] = []
        self._name_units()
        self.cache = Cache(*self._units(), forecaster, schedule, self._note_once, Store(way.cache_dtype, way.offload))
        self._num_inference_steps, self._free_at_end = num_inference_steps, free_at_end
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self._tracker = Tracker(self.hosts[0].spec.time_runs)
        self._context: str | None = None
        self._loop: Loop | None = None  # of the present request
        self._calls: Calls = {}  # of the branches of the present request, where there is a memory limit
        self._usual: dict[Hashable, Calls] = {}  # those of a request by the shapes of its first
        self._flops: dict[Any, Flops | str] = {}
        self._notes: dict[str, str] = {}
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
        if way.granularity != past.granularity and self.attached:
            for host in self.hosts:
                host.swap_units(self.cache, host.present_model())

    # Attaching and detaching

    def attach(self) -> None:
        """Swap the units' forwards and watch the models'."""
        self.attached = True
        for host in self.hosts:
            model = host.present_model()
            self._watch(host, model)
            if hasattr(model, "cache_context"):
                host.contexts.swap(model, "cache_context", self._enter_context)
            if hasattr(model, "enable_cache"):
                host.contexts.swap(model, "enable_cache", refuse_cache)
            host.swap_units(self.cache, model)

    def _watch(self, host: Host, model: nn.Module) -> None:
        """Be told of the model's calls, also when it is compiled later."""

        def compile(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            host.watch.restore()
            original(*args, **kwargs)
            self._watch(host, model)

        host.watch.watch(model, partial(self._before, host), self._after)
        host.watch.swap(model, "compile", compile)

    def detach(self) -> None:
        """Put every forward back and drop the cache; the record of the last request stays. Twice is once."""
        self.attached = False
        for host in self.hosts:
            host.swaps.restore()
            host.contexts.restore()
            host.watch.restore()
        self._tracker.reset()
        self.cache.check_numbers()
        self.cache.free()

    def free(self) -> None:
        """Drop the cache; the record stays. A call that was broken off and whose end was not seen ends here."""
        if self.cache.is_active:
            self._abandon_call()
        self.cache.free()

    def reset(self) -> None:
        """Drop cache and record: the next call begins a request."""
        self._tracker.reset()
        self.cache.request = None

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
        if self.cache.is_active:  # the last call was interrupted, and its end never seen
            self._abandon_call()
        condition = host.look_at(model)
        if condition.replaced:
            host.swaps.restore()
            host.swap_units(self.cache, model)
            self._flops.clear()
            self._abandon_call()
        if condition.compiled and torch.is_grad_enabled() and _wants_gradient(model, tensors):
            raise RuntimeError(
                "relcache is enabled on a compiled model of which a gradient is wanted, and cached steps have none: "
                "sample under torch.no_grad(), or call disable() on the handle to train"
            )
        try:
            self._begin_call(host, condition.hooks, args, kwargs, tensors)
            if condition.compiled and self.cache.is_active:
                if any(self.cache.store.moves(tensor.device) for tensor in tensors):
                    raise ValueError(NOT_WHERE_COMPILED)
                self.cache.settle(host.units, lambda gauge: gauge.look(model.forward, args, kwargs))
        except BaseException:
            self._abandon_call()
            raise

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.cache.is_active:
            return
        if output is None:
            self._abandon_call()
            return
        self.cache.close_call(output)
        if not self.cache.visited:
            self._note_once(
                "unvisited",
                f"a call of {self.model_name} reached none of the cached modules, and nothing of it was cached: its "
                f"forward does not call {self.unit_names[0]} and the others that the spec names",
            )
        if self._free_at_end and self.cache.request is not None:
            self.cache.free(self.cache.request.ended)

    def _abandon_call(self) -> None:
        """Half a step is in the cache: whatever comes next begins a request, and what is cached is of no use."""
        self._tracker.reset()
        self.cache.abandon_call()
        self.cache.free()

    def _begin_call(
        self, host: Host, hooks: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> None:
        given = host.signature.bind_partial(None, *args, **kwargs).arguments
        timestep = given.get(host.spec.timestep)
        if timestep is None:
            raise ValueError(
                f"{host.model_name} was called without its argument {host.spec.timestep!r}, by which "
                "relcache tells one denoising step from the next"
            )
        conditioning = tree_leaves([given.get(name) for name in host.spec.conditioning])
        conditioning.append(hooks)
        loop = self._scheduler_loop()
        known = self.cache.request.total_steps if self.cache.request else None
        rows = count_rows(given.get(host.sample))
        sample = [leaf for leaf in tree_leaves(given.get(host.sample)) if isinstance(leaf, Tensor)]
        place = self._tracker.place(timestep, conditioning, self._context, rows, loop, known, sample)
        key = (host.place, *((tuple(value.shape), value.dtype) for value in tensors))
        if self.memory_limit is not None and place.branch is not None:
            self._keep_limit(host, place, key, args, kwargs, tensors)
        if place.new_request or self.cache.request is None:
            self.cache.request = self._open_request(timestep, loop, rows)
        request = self.cache.request
        if place.new_step:
            self.cache.open_step(place.doubtful)
            if place.doubtful:
                self._note_once(
                    "doubtful",
                    "the transformer was called again at a request's first timestep with the same conditioning and "
                    "another sample, which is taken for the next step. If it is a tile or a guidance branch, enable "
                    "the pipeline, use cache_context, or name what differs in the spec's conditioning",
                )
        key = (self.way.granularity, *key)
        if key not in request.work:
            modules = dict(zip(host.units, host.unit_modules, strict=True))
            try:
                request.work[key] = Work(host.place, sketch((tuple(args), dict(kwargs))), modules)
            except Exception as error:  # arguments that cannot be copied: sampling goes on, the report says so
                request.work[key] = Work(host.place, ((), {}), modules)
                self._flops[key] = f"{type(error).__name__}: {error}"
        work = request.work[key]
        work.calls += 1
        if self.cache.store.offload == "cpu" and all(tensor.device.type in SHARED_MEMORY for tensor in tensors):
            self._notes["offload"] = OFFLOAD_OF_NOTHING
        if place.branch is not None:
            self.cache.open_call(host.place, place.branch, rows, work, partial(host.spec.valid_tokens, given))
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
            self._calls.pop((host.place, forgotten), None)
            self._note_once(
                "branches",
                f"the conditioning changed more than {MOST_BRANCHES} times within a request; each change is computed "
                "in full, because it looks like a new guidance branch",
            )
        if self._tracker.runs_backwards:
            self._note_once("backwards", "the timesteps run the wrong way, so every step is computed in full")

    def _keep_limit(
        self,
        host: Host,
        place: Placement,
        shapes: Hashable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
    ) -> None:
        """See that the cache stays within the memory limit, and choose how features are held.

        That is done before a request, by what earlier ones of its shapes have called, and again where a branch comes
        that was not known: then what is cached may be dropped.

        Raises:
            ValueError: nothing keeps it within the limit.
        """
        assert self.memory_limit is not None
        assert place.branch is not None
        begins = place.new_request or self.cache.request is None
        if begins:
            self._calls = self._usual.setdefault(shapes, {})
            while len(self._usual) > MOST_USUAL:
                self._usual.pop(next(iter(self._usual)))
        known = self._calls.get((host.place, place.branch))
        if known is not None and known.shapes == shapes and not begins:
            return
        if known is None or known.shapes != shapes:
            try:
                inputs = sketch(host.arguments(args, kwargs))
            except Exception:  # arguments that cannot be copied
                inputs = host.arguments(args, kwargs)
            spec = self.specs[host.place]
            self._calls[host.place, place.branch] = Call(host, spec, shapes, inputs)
        movable = any(has_own_memory(tensor.device) for tensor in tensors)
        try:
            choice = self.chooser.choose(self.memory_limit, list(self._calls.values()), movable)
        except ValueError:
            self._calls.clear()  # the next request may have fewer branches
            raise
        text, changed = str(choice), choice.way != self.way
        if changed and not begins and self.cache.request is not None:
            step = self.cache.request.step + place.new_step
            text += f"; chosen at step {step}, when branch {place.branch!r} came: what was cached was dropped"
        self._notes["memory"] = text
        self.hold(choice.way)

    @property
    def is_movable(self) -> bool:
        """Whether features lie, or will lie, on a device with a memory of its own."""
        device = getattr(self._pipeline() if self._pipeline is not None else None, "_execution_device", None)
        weights = (weight.device for host in self.hosts for weight in host.present_model().parameters())
        return any(map(has_own_memory, weights)) or (isinstance(device, torch.device) and has_own_memory(device))

    def _open_request(self, timestep: Any, loop: Loop | None, batch: int) -> Request:
        self.cache.check_numbers()  # of the request before
        total = self._num_inference_steps
        if loop is not None:
            total = len(loop.timesteps) - index_in(loop.timesteps, timestep, self.hosts[0].spec.time_runs)
        asking = {f"full_last={self.schedule.full_last}": self.schedule.full_last, "free_at_end": self._free_at_end}
        for option, asks in asking.items() if total is None else ():
            if asks:
                raise ValueError(
                    f"{option} needs the number of steps: enable the pipeline instead of the bare transformer, or pass "
                    "num_inference_steps to relcache.enable"
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
                names = [name for modules in work.modules.values() for name in modules]
                self._flops[key] = without_values(lambda copied: count_modules(copied(model), names, *copied(example)))
            except Exception as error:  # a forward that cannot run on the meta device: the report says so
                self._flops[key] = f"{type(error).__name__}: {error}"
        return self._flops[key]

    @property
    def last_call(self) -> tuple[int, int]:
        """Rows of the last request's batch and the number of its branches, (1, 1) before the first."""
        request = self.cache.request
        return (request.batch, max(len(request.branches), 1)) if request is not None else (1, 1)

    def states(self) -> list[tuple[str, str, Any]]:
        """Branch, unit and state of the forecaster, for each stream of features that is kept."""
        request = self.cache.request
        return [
            (name, f"{unit}[{place}]" if place else unit, self.cache.store.get(stream.state))
            for name, branch in (request.branches.items() if request else ())
            for unit, cell in zip(self.unit_names, branch.cells, strict=False)
            for place, stream in enumerate(cell.streams)
        ]

    @property
    def full_steps(self) -> list[int]:
        """Which steps of the last request were full."""
        return list(self.cache.request.full_steps) if self.cache.request is not None else []

    def report(self) -> Report:
        """The record of the present or last request. Counting FLOPs is done here, on the meta device."""
        self.cache.check_numbers()
        request = self.cache.request or Request(None, None, 0)
        notes = list(self._notes.values())
        flops = full_flops = products = 0
        countable = True
        for key, work in request.work.items():
            count = self._count(key, work)
            if isinstance(count, str):
                notes.append(f"FLOPs could not be counted: {count}")
                countable = False
                continue
            full_flops += work.calls * count.total
            flops += work.calls * count.total
            products += work.calls * count.products
            for index, times in work.skipped.items():
                flops -= times * sum(count.modules[name] for name in work.modules[index])
                products -= times * sum(count.module_products[name] for name in work.modules[index])
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
            linear_flops=flops - products if countable and request.work else None,
            full_flops=full_flops if countable and request.work else None,
            cache_bytes=request.cache_bytes,
            device_bytes=request.device_bytes,
            fallbacks=request.fallback_counts(),
            notes=notes,
        )


def _wants_gradient(model: nn.Module, tensors: list[Tensor]) -> bool:
    """Whether a parameter or an argument of a call requires a gradient."""
    return any(value.requires_grad for value in (*tensors, *model.parameters()))
