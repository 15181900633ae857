"""Sample by any contestant of a comparison, a method of relcache or a rival, and find its budget."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from relcache.api import enable
from relcache.bench.rivals.base import Rival, known_spec, only_transformer
from relcache.bench.rivals.registry import rival_of
from relcache.bench.rivals.solvers import Solver
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import TriedThresholds, at_budget, budgets_of, interval_for, smallest_threshold
from relcache.bench.sampling.pipelines import is_out_of_memory
from relcache.bench.sampling.scale import Scale, Weight, weighed
from relcache.bench.sampling.stopwatch import Laps, timed
from relcache.methods import method_from_config

PROBE_STEPS = 4  # of the short runs of full compute that times are compared with; the first step warms up
WEIGHED_AT = 0.8  # of the calls of a run with one call a step
Config = Mapping[str, Any]


class Sampled(NamedTuple):
    """One batch of a contestant.

    Attributes:
        images: float32 in [0, 1], pictures (n, channels, height, width) or clips (n, frames, …).
        seconds: of the whole call, with text encoders and decoder.
        denoising: seconds from the transformer's first call to its last; None if it was not or cannot be timed.
        calls: of the transformer.
        held: bytes that it keeps late in the run; None if not weighed.
        report: as `Report.to_dict` has it. Rivals have no FLOPs and no signal.
    """

    images: Tensor
    seconds: float
    denoising: float | None
    calls: int
    held: int | None
    report: dict[str, Any]


def check_contestant(config: Config) -> None:
    """Check the config of a contestant that has its budget.

    Raises:
        ValueError: unknown options, or values that the method refuses.
    """
    rival = rival_of(config)
    if rival is None:
        method_from_config(_without_steps(config))
    elif rival.budget not in config:
        raise ValueError(f"{rival.name} has no {rival.budget}")


def unfit(config: Config, pipeline: Any) -> str:
    """Return why a contestant cannot run on a pipeline; "" if it can, or if it is a method of relcache."""
    rival = rival_of(config)
    if rival is None:
        return ""
    try:
        known_spec(only_transformer(pipeline))
        return rival.unfit(pipeline)
    except ValueError as error:
        return str(error)


class Unfit(Exception):
    """A rival cannot run on a pipeline; the message says why."""


def sample(
    config: Config,
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    *,
    timed: bool = False,
    weigh: bool = False,
) -> Sampled:
    """Sample one batch by the contestant of `config`; time denoising if `timed`, and weigh what it keeps if `weigh`.

    The key `steps` replaces the sampler's number of steps.
    """
    sampler = replace(sampler, steps=int(config.get("steps", sampler.steps)), batch=len(seeds))
    rival, pipeline = rival_of(config), sampler.pipeline
    with ExitStack() as stack:
        scale = stack.enter_context(Scale()) if weigh else None
        handle = None
        if rival:
            stack.enter_context(rival.enabled(pipeline, config, sampler.steps))
        else:
            method = method_from_config(_without_steps(config))
            if timed and method.name == "full":  # one unit instead of many, whose features it would keep
                method = replace(method, granularity="stack")
            handle = stack.enter_context(enable(pipeline, method))
        watch = stack.enter_context(watched(pipeline)) if rival or timed else None
        weight = Weight()
        if scale is not None and watch is not None:
            calls = max(1, int(WEIGHED_AT * sampler.steps))
            weight = stack.enter_context(weighed(only_transformer(pipeline), calls, scale))
        began = time.perf_counter()
        images = sampler.call(seeds, conditions)
        seconds = time.perf_counter() - began - weight.before - weight.seconds
        if handle:
            report = handle.report().to_dict()
            del report["step_seconds"]  # the batch has a time of its own, and else is the same each time
        else:
            report = _report(rival, watch, sampler.steps, len(seeds), weight.held)
    if not report["batch"]:
        raise ValueError(f"{type(pipeline).__name__} made no step with {dict(sampler.options)}")
    denoising = watch.seconds - weight.seconds if timed and watch is not None and watch.calls else None
    return Sampled(images, seconds, denoising, len(watch.calls) if watch else 0, weight.held, report)


def seconds_of_full_call(sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> float | None:
    """Return the median seconds of a call of the transformer in a short run of full compute; None without a spec."""
    with watched(sampler.pipeline) as watch:
        if watch is None:
            return None
        replace(sampler, steps=PROBE_STEPS, batch=len(seeds)).call(seeds, conditions)
    return statistics.median(seconds for seconds, _ in watch.each[1:])


@contextmanager
def watched(pipeline: Any) -> Iterator[Laps | None]:
    """Time the transformer's calls; yield None if there are two transformers, or if full calls cannot be recognised."""
    try:
        model = only_transformer(pipeline)
        context = timed(model, known_spec(model))
        laps = context.__enter__()
    except ValueError:
        yield None
        return
    try:
        yield laps
    finally:
        context.__exit__(None, None, None)


def _without_steps(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "steps"}


def _report(rival: Rival | None, watch: Laps | None, steps: int, batch: int, held: int | None) -> dict[str, Any]:
    """Return the report of a rival's run: a step is full if each of its calls was."""
    if watch is None:
        raise ValueError("a rival needs a pipeline with one transformer that relcache knows")
    made = rival.calls * (steps - 1) + 1 if isinstance(rival, Solver) else steps
    branches = max(1, round(len(watch.calls) / made))  # calls in each step
    full = [index for index, (_, _, is_full) in enumerate(watch.calls) if is_full]
    return {
        "batch": batch, "nfc": len(full) / branches, "flops": None, "linear_flops": None, "cache_bytes": held or 0,
        "signal": [], "full_steps": sorted({index // branches for index in full}), "steps": made, "branches": branches,
    }  # fmt: skip


def budgeted(
    config: Config,
    targets: Sequence[int],
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    tell: Callable[[float, float], None],
    known: TriedThresholds,
) -> dict[int, dict[str, Any]]:
    """Return `config` with its budget for each number of full steps.

    Thresholds and other options are found on calibration samples, for which no result is reported. `known` keeps the
    thresholds tried; `tell` is called with each.

    Raises:
        Unfit: the config names a rival that cannot run on the pipeline.
    """
    rival = rival_of(config)
    found: dict[int, dict[str, Any]] = {}
    if rival is not None and (reason := unfit(config, sampler.pipeline)):
        raise Unfit(reason)
    if rival is None:
        for nfc in targets:
            method = at_budget(config, nfc, sampler, seeds, conditions, tell, known)
            found[nfc] = {**config, **budgets_of(method)}
        return found
    try:
        return _of_rival(rival, config, targets, sampler, seeds, conditions, tell, known)
    except Unfit:
        raise
    except Exception as error:  # another library's, of any kind: it ends one contestant, not the race
        raise Unfit(reason_of(error)) from error


def ends_one_contestant(config: Config, error: Exception) -> bool:
    """Whether an error of a run is no reason to end the comparison: a rival's of any kind, or a lack of memory."""
    return rival_of(config) is not None or (config["method"] != "full" and is_out_of_memory(error))


def reason_of(error: Exception) -> str:
    """Return an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def _of_rival(
    rival: Rival,
    config: Config,
    targets: Sequence[int],
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    tell: Callable[[float, float], None],
    known: TriedThresholds,
) -> dict[int, dict[str, Any]]:
    """Return the config of a rival with its budget for each number of full steps, and sample once with the first."""
    further = rival.calibrate(sampler, seeds, conditions)
    found: dict[int, dict[str, Any]] = {}

    def count(threshold: float) -> float:
        tried = {**config, **further, "threshold": threshold}
        batches = [slice(start, start + sampler.batch) for start in range(0, len(seeds), sampler.batch)]
        reports = [sample(tried, sampler, seeds[rows], conditions[rows]).report for rows in batches]
        return round(sum(report["nfc"] * report["batch"] for report in reports) / len(seeds), 6)

    for nfc in targets:
        value: float
        if rival.budget in config:
            value = config[rival.budget]
        elif rival.budget == "threshold":
            value = smallest_threshold(count, nfc, sampler.steps, rival.start, rival.warmup, known, tell=tell)
        elif rival.budget == "interval":
            value = interval_for(nfc, sampler.steps, rival.phase, rival.warmup)
        elif isinstance(rival, Solver):
            value = rival.steps(nfc)
        else:
            value = nfc
        found[nfc] = {**config, **further, rival.budget: value}
    report = sample(found[targets[0]], sampler, seeds[:1], conditions[:1]).report
    if rival.one_call and report["branches"] > 1:
        raise Unfit("it keeps one state, and guidance calls the transformer several times in each step")
    return found
