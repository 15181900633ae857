"""Switching caching on and off: `enable` and the handle that it returns."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import nn

from relcache.checks import bytes_from, check_whole
from relcache.correctors import Corrector
from relcache.forecasters import Forecaster
from relcache.memory.choice import Call, Choice, Way
from relcache.method import Method
from relcache.methods import chosen_method, corrector_from
from relcache.models import SPECS, UNSUPPORTED, ModelSpec, Size, spec_for
from relcache.models.coarse import Granularity
from relcache.presets import Preset
from relcache.schedules import Schedule
from relcache.session.caller import Named
from relcache.session.components import Pixels, find_transformers, refuse_other_caches
from relcache.session.report import Report
from relcache.session.session import Session
from relcache.storage.offload import Offload
from relcache.storage.packing import CacheDtype

# Sessions by model, both weakly: what keeps a session alive is the model that it is attached to.
_sessions: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Session]] = weakref.WeakKeyDictionary()


class Handle:
    """Caching that is enabled on a pipeline or transformer. Also a context manager that disables it at its end."""

    def __init__(self, session: Session, pixels: Pixels | None = None):
        self._session, self._pixels = session, pixels

    @property
    def enabled(self) -> bool:
        """Whether this handle still acts on its model."""
        return self._session.attached and any(host.model() is not None for host in self._session.hosts)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self._session.method

    @property
    def granularity(self) -> Granularity:
        """What is skipped and forecast as one. With a memory limit, as in the last request."""
        return self._session.way.granularity

    @property
    def units(self) -> list[str]:
        """Names of the cached modules, in the order in which they are computed.

        Modules that are skipped together are one: `single_transformer_blocks.0.proj_mlp+attn+proj_out`. With a memory
        limit they are those of the last request.
        """
        return list(self._session.unit_names)

    def report(self) -> Report:
        """What the last request did; also after `disable`."""
        return self._session.report()

    @property
    def full_steps(self) -> list[int]:
        """Which steps of the last request were full, from 0; as the report's, without counting anything."""
        return self._session.full_steps

    def states(self) -> list[tuple[str, str, Any]]:
        """What the forecaster keeps of the last request: branch, module, and the forecaster's own state.

        A module with several outputs, such as joint attention, has an entry for each; the second is named `MODULE[1]`.
        Features that are neither packed nor offloaded are the tensors themselves, which the next full step writes over.
        """
        return self._session.states()

    def reset(self) -> None:
        """Forget the last request: the next call begins a new one.

        Requests are told apart without this. It is for hand-written loops that give no sign of a new beginning, such
        as one that breaks off and starts again at a later timestep with the same conditioning tensors.
        """
        self._session.reset()

    def request(self) -> Named:
        """A context for the calls of one loop, for loops written by hand that take turns on one transformer.

        Pipelines, and loops in threads, are told apart without it. It may be entered around each call of its loop:

            first, second = handle.request(), handle.request()
            for t in timesteps:
                with first:
                    a = step(model(a, t, prompt), a)
                with second:
                    b = step(model(b, t, other_prompt), b)
        """
        return Named()

    def free(self) -> None:
        """Drop the cached features and keep the record; a request that goes on computes its next steps in full.

        Without this they are held until the next request begins. `relcache.enable(..., free_at_end=True)` drops them at
        the end of each.
        """
        self._session.free()

    def estimate(
        self,
        height: int,
        width: int,
        frames: int = 1,
        *,
        batch: int | None = None,
        branches: int | None = None,
        text: int | None = None,
    ) -> int:
        """Bytes that the cache will hold in a request of this size, wherever it keeps them.

        Nothing is computed and no memory taken.

        Args:
            height, width, frames: of the pictures, in pixels; of the latents, where a bare transformer was enabled.
            batch: samples in one call of the transformer: twice the pictures where guidance doubles the batch. By
                default as many as in the last request, 1 before the first.
            branches: guidance branches for which a transformer is called one by one; by default likewise.
            text: tokens of text; by default as many as the family's pipeline gives.

        Raises:
            ValueError: a size below 1, or a spec that does not say how to call the model.
            RuntimeError: the model has been deleted.
        """
        session = self._session
        option = session.chooser.weigh(session.way, self._calls(height, width, frames, batch, branches, text))
        if option.problem:
            raise ValueError(f"a forward without values failed: {option.problem}")
        return option.cache_bytes

    def choose(
        self,
        height: int,
        width: int,
        frames: int = 1,
        *,
        memory_limit: int | str | None = None,
        batch: int | None = None,
        branches: int | None = None,
        text: int | None = None,
    ) -> Choice:
        """What a memory limit chooses for requests of this size, and what the cache will hold. Changes nothing.

        The model may lie on the meta device; it is then taken to be meant for a GPU.

        Args:
            height, width, frames, batch, branches, text: as in `estimate`.
            memory_limit: as in `relcache.enable`; by default the handle's own.

        Raises:
            ValueError: no limit, or nothing stays within it; else as `estimate`.
        """
        limit = self._session.memory_limit if memory_limit is None else bytes_from(memory_limit)
        if limit is None:
            raise ValueError("choose() needs memory_limit=, here or in relcache.enable: '6GB', say")
        calls = self._calls(height, width, frames, batch, branches, text)
        return self._session.chooser.choose(limit, calls, self._session.is_movable)

    def _calls(
        self, height: int, width: int, frames: int, batch: int | None, branches: int | None, text: int | None
    ) -> list[Call]:
        rows, branches_before = self._session.last_call
        batch, branches = rows if batch is None else batch, branches_before if branches is None else branches
        sizes = {"height": height, "width": width, "frames": frames, "batch": batch, "branches": branches}
        for name, value in sizes.items():
            check_whole(name, value, 1)
        latents = self._pixels.latents(height, width, frames) if self._pixels else (height, width, frames)
        calls = []
        for host, spec in zip(self._session.hosts, self._session.specs, strict=True):
            size = Size(batch, *latents, spec.text if text is None else text)
            calls += branches * [Call(host, spec, size, spec.example(host.present_model(), size))]
        return calls

    def disable(self) -> None:
        """Put the model's own forwards back and free the cache. A second call does nothing."""
        self._session.detach()

    def __enter__(self) -> Handle:
        if not self.enabled:
            raise RuntimeError(
                "this handle was disabled, or its model is gone: call relcache.enable(...) again, as in "
                "'with relcache.enable(pipe, method) as handle'"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    def __repr__(self) -> str:
        state = "enabled" if self.enabled else "disabled"
        return f"<relcache {self.method} on {self._session.model_name}, {len(self.units)} modules, {state}>"


def enable(
    model_or_pipe: Any,
    method: Method | Preset | str | None = None,
    *,
    full_steps: int | None = None,
    speedup: float | None = None,
    forecaster: Forecaster | None = None,
    schedule: Schedule | None = None,
    corrector: Corrector | str | None = None,
    finer: int | None = None,
    spec: ModelSpec | None = None,
    num_inference_steps: int | None = None,
    granularity: Granularity | None = None,
    cache_dtype: CacheDtype | None = None,
    offload: Offload | None = None,
    memory_limit: int | str | None = None,
    free_at_end: bool = False,
    scheduler: Any = None,
) -> Handle:
    """Let a diffusers pipeline, or a bare transformer, skip work by `method`, by default `relcache.auto()`.

    Where relcache is enabled on the transformer already, the old handle is disabled and the new one takes over; where
    enabling fails, all stays as it was, the old handle too. A wrapper that holds nothing but the transformer is looked
    through (PEFT's PeftModel, DistributedDataParallel).

    Guidance branches that are called one by one are told apart by the pipeline's `cache_context`, else by the tensors
    of their conditioning. One caveat: under `torch.inference_mode` a tensor does not show that it was overwritten, so
    give each branch a tensor of its own there, or use `cache_context`.

    Args:
        model_or_pipe: a pipeline with a `transformer`, or the transformer itself.
        method: a method such as `RFC(order=2, threshold=0.12)`, or its text as on the command line,
            "rfc:order=2,threshold=0.12"; or a `Preset`, or its text, "preset:name=small-flux-8".
        full_steps: a budget: exactly so many full steps in each request, or all if it has no more. For the default
            method, for RFC and RCS, whose threshold is then steered, and for a `forecaster` without a schedule.
        speedup: instead, how many times faster the loop of denoising steps is to run, by times that the first request
            of each size measures. For the default method, and a `forecaster` without a schedule.
        forecaster, schedule: a pair of one's own, in place of `method`; the schedule by default `Growing`.
        corrector: how gaps between full steps are made good: `Replay()`, "replay" or "none"; by default the method's,
            which for the methods of papers is none. It needs the scheduler: of the pipeline, or given as `scheduler`.
        finer: 4 makes four times as many steps as the pipeline asks its scheduler for, at the same number of full ones.
            Where cached steps cost little, this comes nearer to the exact solution. The pipeline shows the greater
            number, also to callbacks. By default the method's, 1.
        spec: where the modules are, for a transformer that relcache does not know.
        num_inference_steps: steps of each request. A pipeline tells them by itself; a loop written by hand may.
        granularity: what is skipped and forecast as one: "module" (attention, feed-forward; the paper's), "block", or
            "stack", the run of all blocks, of which a cached step computes nothing. By default the method's. Of blocks
            and stacks the residual is forecast: the output minus the input.
        cache_dtype: what features are packed into between the steps, to hold fewer bytes: "bfloat16"; "float8" or
            "int8" with a scale for each token; or "features", as they are. By default the method's.
        offload: "cpu" keeps the features in pinned memory of the host between the steps and brings those of the next
            unit back while one is computed; "none" leaves them on the device. By default the method's.
        memory_limit: most that the cache may take of the device's memory, in bytes or as "6GB", "800 MB", "6 GiB": what
            is left beside the model and its own work. At the beginning of each request granularity, cache_dtype and
            offload are chosen by the shapes of its call, the best for the pictures that fits (`relcache.memory.choice` has the
            order, `Handle.choose` asks beforehand). Those of the three that are given here, or by the method in
            another value than its default, are kept. The first request of each shape costs a forward without values for
            each granularity that is looked at. By default the method's.
        free_at_end: drop the features of each branch at the end of its last step, not when the next request begins.
            Needs the number of steps, as `num_inference_steps` has it.
        scheduler: the diffusers scheduler that a loop written by hand steps: it tells where a request begins and how
            far it is, and gaps are corrected at its updates. A pipeline's own is found by itself.

    Raises:
        TypeError: not a pipeline or transformer, or not a method; a wrapper in which calls cannot be told, as
            torch.compile(model) makes.
        ValueError: no spec for the transformer, a spec that matches no module, a preset for another model or
            scheduler, a cache of diffusers is active, blocks that cannot be taken whole or are wrapped one by one, a
            memory limit that is no amount of memory; a schedule that follows the error, on a transformer that processes
            share under context parallelism or with FSDP inside its units. A call of the transformer raises it where
            nothing keeps within the limit, or where that has become so.
        RuntimeError: another library's cache is active.
    """
    chosen = chosen_method(method, forecaster, schedule, full_steps, speedup)
    options = {
        "granularity": granularity,
        "cache_dtype": cache_dtype,
        "offload": offload,
        "memory_limit": memory_limit,
        "finer": finer,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if corrector is not None:
        given["corrector"] = corrector_from(corrector)
    chosen = replace(chosen, **given)
    way = Way(chosen.granularity, chosen.cache_dtype, chosen.offload)
    fixed = {name for name in Way._fields if name in given or getattr(way, name) != getattr(Way(), name)}
    limit = bytes_from(chosen.memory_limit) if chosen.memory_limit is not None else None
    if num_inference_steps is not None:
        check_whole("num_inference_steps", num_inference_steps, 1)
    if spec is not None and not isinstance(spec, ModelSpec):
        raise TypeError(f"spec is a relcache.ModelSpec, got {spec!r}")
    models, pipeline = find_transformers(model_or_pipe, spec)
    refuse_other_caches(models)
    if chosen.made_for is not None:
        chosen.made_for.check(models, getattr(pipeline, "scheduler", None) or scheduler)
    specs = {name: spec or spec_for(model, SPECS, UNSUPPORTED) for name, model in models.items()}
    hosts = [(name, model, specs[name]) for name, model in models.items()]

    def session_by(way: Way) -> Session:
        return Session(
            hosts,
            chosen.forecaster,
            chosen.schedule,
            chosen.name,
            pipeline,
            num_inference_steps,
            way,
            limit,
            fixed,
            free_at_end,
            scheduler,
            chosen.corrector,
            chosen.finer,
            chosen.made_for,
        )

    try:
        session = session_by(way)
    except ValueError as error:
        if method is not None or forecaster is not None or granularity is not None:
            raise
        warnings.warn(f"relcache: modules are cached one by one, as {error}", stacklevel=2)
        session = session_by(way._replace(granularity="module"))
    earlier = [known() for model in models.values() if (known := _sessions.get(model)) is not None]
    take_over(session, [past for past in dict.fromkeys(earlier) if past is not None and past.attached])
    for model in models.values():
        _sessions[model] = weakref.ref(session)
    return Handle(session, Pixels.of(pipeline) if pipeline is not None else None)


def is_enabled(model: nn.Module) -> bool:
    """Whether relcache acts on this transformer."""
    known = _sessions.get(model)
    session = known() if known is not None else None
    return session is not None and session.attached


def take_over(session: Session, earlier: Sequence[Session]) -> None:
    """Attach `session` in the place of `earlier` ones, which go on as they were if that fails."""
    resumes: list[Callable[[], None]] = []
    try:
        for past in earlier:
            resumes.append(past.let_go())
        session.attach()
    except BaseException:
        for resume in reversed(resumes):
            resume()
        raise
    for past in earlier:
        past.detach()
