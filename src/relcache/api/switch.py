"""Switch caching on and off: `enable` and `disable`."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from torch import nn

from relcache.api.handle import Handle
from relcache.checks import check_whole
from relcache.correctors import Corrector
from relcache.engine.ranks import ranks_from
from relcache.forecasters import Forecaster
from relcache.memory.choice import Way
from relcache.method import Method
from relcache.methods import chosen_method, corrector_from, method_to_text
from relcache.models import SPECS, UNSUPPORTED, ModelSpec, spec_for
from relcache.models.coarse import Granularity
from relcache.presets import Preset
from relcache.schedules import Schedule
from relcache.session.caller import is_around
from relcache.session.components import Pixels, find_transformers, refuse_other_caches
from relcache.session.requests import Options
from relcache.session.session import Session
from relcache.storage.offload import Offload
from relcache.storage.packing import CacheDtype
from relcache.warning import warn

# Models and sessions are referenced weakly: only its models keep a session alive.
_sessions: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Session]] = weakref.WeakKeyDictionary()


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
    group: Any = None,
) -> Handle:
    """Let a diffusers pipeline, or a bare transformer, skip work with `method`, by default `relcache.auto()`.

    An earlier handle on the transformer is disabled, and the new one takes over. If enabling fails, nothing changes.
    Wrappers such as PEFT's PeftModel and DistributedDataParallel are accepted, too.

    Guidance branches that are called one by one are identified by the pipeline's `cache_context`, else by their
    conditioning tensors. Under `torch.inference_mode` overwriting a tensor leaves no trace: give each branch its own
    tensor there, or use `cache_context`.

    Corrector, finer, granularity, cache_dtype, offload and memory_limit are by default those of the method.

    Args:
        model_or_pipe: a pipeline with a `transformer`, or the transformer itself.
        method: a method such as `RFC(order=2, threshold=0.12)`, a `Preset`, or either as text, as on the command
            line: "rfc:order=2,threshold=0.12", "preset:name=small-flux-8".
        full_steps: a budget: the exact number of full steps in each request, or all steps if it has fewer. For the
            default method, for RFC and RCS with an adaptive threshold, and for a `forecaster` without a schedule.
        speedup: instead, the desired speed of the denoising loop relative to full compute, by times measured in the
            first request of each size. For the default method, and a `forecaster` without a schedule.
        forecaster: your own, instead of `method`.
        schedule: of that forecaster; `Growing` by default.
        corrector: corrects gaps between full steps: `Replay()`, "replay" or "none". It needs the scheduler.
        finer: 4 makes four times as many steps as the pipeline requests of its scheduler, with the same number of full
            ones. If cached steps cost little, this comes nearer to the exact solution. The pipeline and its callbacks
            see the greater number.
        spec: names the units of a transformer that relcache does not know.
        num_inference_steps: steps of each request, for a hand-written loop. A pipeline's scheduler knows them.
        granularity: the unit that is skipped and forecast: "module" (attention, feed-forward, as in the paper),
            "block", or "stack", the run of all blocks. Blocks and stacks are forecast by their residual, output minus
            input.
        cache_dtype: the type of features between steps: "bfloat16"; "float8" or "int8" with a scale for each token; or
            "features", the type of the features themselves.
        offload: "cpu" stores the features in pinned host memory between steps, and fetches those of the next unit
            during the present one. "none" leaves them on the device.
        memory_limit: the greatest size of the cache on the device, in bytes or as "6GB", "800 MB", "6 GiB". Memory of
            the model does not count. Each request then chooses granularity, cache_dtype and offload by its shapes: the
            best for the pictures that fits, in the order of `relcache.memory.choice`. Those of the three that are
            passed here or set by the method do not change. The first request of each shape costs a shape-only forward
            pass for each granularity tried.
        free_at_end: drop the features of each branch at the end of its last step, not when the next request begins.
            This needs the number of steps: a scheduler, or `num_inference_steps`.
        scheduler: the diffusers scheduler of a hand-written loop. It shows where a request begins and its progress, and
            gaps are corrected at its updates. A pipeline's scheduler is found automatically.
        group: processes that each have some tokens of the same samples, as a ProcessGroup or DeviceMesh of
            torch.distributed. They take the same full steps. Or a dictionary of groups that share "tokens", "guidance"
            (each has some of the branches) or "weights". Context and tensor parallelism of diffusers and
            fully_shard are found automatically.

    Raises:
        TypeError: an argument is no pipeline or transformer, or no method; or a wrapper, such as that of
            `torch.compile(model)`, hides calls.
        ValueError: there is no spec for the transformer, or the spec matches no module; the preset is for another model
            or scheduler; a cache of diffusers is active; blocks cannot be cached as a whole, or are wrapped one by one;
            the memory limit is no amount of memory; the forecaster or the model cannot be shared by processes. A call
            of the transformer raises it if no way of storing features stays within the memory limit.
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
    passed: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if corrector is not None:
        passed["corrector"] = corrector_from(corrector)
    chosen = replace(chosen, **passed)
    chosen = replace(chosen, name=method_to_text(chosen))
    fixed = frozenset(name for name in Way._fields if name in passed or getattr(chosen, name) != getattr(Way(), name))
    if num_inference_steps is not None:
        check_whole("num_inference_steps", num_inference_steps, 1)
    if spec is not None and not isinstance(spec, ModelSpec):
        raise TypeError(f"spec is a relcache.ModelSpec, got {spec!r}")
    ranks = ranks_from(group)
    models, pipeline = find_transformers(model_or_pipe, spec)
    refuse_other_caches(models)
    if chosen.made_for is not None:
        chosen.made_for.check(models, getattr(pipeline, "scheduler", None) or scheduler)
    hosts = [(name, model, spec or spec_for(model, SPECS, UNSUPPORTED)) for name, model in models.items()]

    def session_with(method: Method) -> Session:
        options = Options(num_inference_steps, free_at_end, fixed, ranks)
        return Session(hosts, method, options, pipeline=pipeline, scheduler=scheduler)

    try:
        session = session_with(chosen)
    except ValueError as error:
        if method is not None or forecaster is not None or granularity is not None:
            raise
        warn(f"relcache: modules are cached one by one, as {error}")
        session = session_with(replace(chosen, granularity="module"))
    session.attach(list(dict.fromkeys(filter(None, map(_session_of, models.values())))))
    for model in models.values():
        _sessions[model] = weakref.ref(session)
    return Handle(session, Pixels.of(pipeline) if pipeline is not None else None)


def disable(model_or_pipe: Any) -> bool:
    """Disable caching on a pipeline or transformer without its handle; return whether caching was enabled.

    A wrapper of the transformer, or another pipeline that shares it, is accepted, too.

    Raises:
        TypeError: the argument is neither a pipeline nor a transformer.
    """
    attributes = getattr(model_or_pipe, "__dict__", None)
    if attributes is None or isinstance(model_or_pipe, type):
        raise TypeError(f"disable takes a pipeline or its transformer, got {model_or_pipe!r}")
    values = [model_or_pipe, *attributes.values()]
    sessions = {
        session
        for model, reference in list(_sessions.items())
        if (session := reference()) is not None and session.attached
        if session.requests.pipeline is model_or_pipe or any(is_around(value, model) for value in values)
    }
    for session in sessions:
        session.detach()
    return bool(sessions)


def is_enabled(model: nn.Module) -> bool:
    """Return whether relcache acts on this transformer."""
    return _session_of(model) is not None


def _session_of(model: nn.Module) -> Session | None:
    """Return the session that is attached to a transformer; None if there is none."""
    reference = _sessions.get(model)
    session = reference() if reference is not None else None
    return session if session is not None and session.attached else None
