"""Find the full steps that suit a model, a scheduler and a budget best. See `calibrate`."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relcache.api import enable, is_enabled
from relcache.calibration.progress import Progress
from relcache.calibration.trials import Call, Tell, Trials
from relcache.checks import check_whole
from relcache.correctors.sampler import predicts
from relcache.method import Method
from relcache.methods import chosen_method
from relcache.models.origin import Origin
from relcache.presets import Preset
from relcache.schedules import Growing, Plan
from relcache.schedules.base import Setting
from relcache.session.components import find_transformers, refuse_other_caches

OWN = ("num_inference_steps", "generator", "output_type", "return_dict")  # arguments that are set here


def calibrate(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    full_steps: int,
    *,
    num_inference_steps: int = 50,
    method: Method | str | None = None,
    trials: int = 60,
    seed: int = 0,
    progress: str | Path | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Preset:
    """Find a plan of exactly `full_steps` full steps for this pipeline's model and scheduler.

    Three parts. How far each gap leads off is measured on the exact path, by where it ends and how long it is, and how
    many times an error is as large in the final sample. The plan whose gaps add up to the least is the shortest path
    with exactly `full_steps` steps. From that one or the plan of `Growing`, whichever is nearer to full compute,
    one full step after the other is moved as long as the final pictures come nearer. Where the pipeline's scheduler
    does not make one update for each step, pictures alone decide, from the plan of `Growing`.

    Measuring costs about as much as 10 requests of full compute for each call, a trial as much as a cached request.

    Args:
        pipe: a diffusers pipeline on which relcache is not enabled.
        calls: arguments of a call each, such as `{"prompt": "a cat"}`; a few that are like those to come. Number of
            steps, generator and output_type are set here.
        full_steps: the budget.
        num_inference_steps: what each call asks for.
        method: the one whose forecaster, corrector and granularity are used, by default `relcache.auto()`.
        trials: the most plans that are judged by final pictures; fewer where no neighbour is better. The two that the
            search begins with are judged in any case.
        seed: call i has the generator of seed + i.
        progress: a file that keeps each measurement. A later call with the same file goes on from it.
        tell: called with what is being done, and how many of how many parts are.

    Raises:
        TypeError: not a pipeline.
        ValueError: no calls, a budget that leaves no step to skip or is less than the method needs, an argument that
            is set here, relcache or another cache at work on the pipeline, a progress file of something else.
    """
    if not callable(pipe) or not hasattr(pipe, "scheduler"):
        raise TypeError(f"calibrate takes a diffusers pipeline, got {type(pipe).__name__}")
    if isinstance(calls, (str, Mapping)) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError("calls is a list of arguments by name, [{'prompt': 'a cat'}] say")
    if not calls:
        raise ValueError("calibrate needs a call or more, [{'prompt': 'a cat'}] say")
    check_whole("num_inference_steps", num_inference_steps, 2)
    taken = sorted({name for call in calls for name in call if name in OWN})
    if taken:
        raise ValueError(f"{', '.join(taken)} is set by calibrate: leave it out of the calls")
    check_whole("full_steps", full_steps, 1)
    if full_steps >= num_inference_steps:
        raise ValueError(f"nothing is left to calibrate: {full_steps} full steps of {num_inference_steps}")

    def made(place: int) -> Call:
        def call() -> Tensor:
            generator = torch.Generator().manual_seed(seed + place)
            return _pictures(pipe(**calls[place], **_options(pipe, num_inference_steps), generator=generator))

        return call

    return find_plan(pipe, [made(place) for place in range(len(calls))], full_steps, method, trials, progress, tell)


def find_plan(
    pipe: Any,
    calls: Sequence[Callable[[], Tensor]],
    full_steps: int,
    method: Method | str | None = None,
    trials: int = 60,
    progress: str | Path | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Preset:
    """As `calibrate`, where each of `calls` is one request that makes pictures, (n, …), with the same seeds each time.

    Raises:
        ValueError: as `calibrate`.
    """
    check_whole("full_steps", full_steps, 1)
    check_whole("trials", trials, 0)
    base = chosen_method(method)
    if base.made_for is not None or base.finer != 1:
        raise ValueError("calibrate takes a method that is neither a preset nor finer")
    history = base.forecaster.full_steps_needed
    if full_steps < history:
        raise ValueError(f"{base.forecaster} needs {history} full steps, and the budget is {full_steps}")
    models = find_transformers(pipe)[0]
    if any(map(is_enabled, models.values())):
        raise ValueError("relcache is enabled on this pipeline: call disable() on its handle first")
    refuse_other_caches(models)
    with enable(pipe, method) as handle:  # what cannot be cached shows before anything is computed
        base = replace(base, granularity=handle.granularity)
    origin = Origin.of(models, pipe.scheduler)
    blank = Preset(origin, 1, (0,), base).to_dict()  # what a file cannot hold is refused
    known = Progress(progress, {**blank, "full_steps": full_steps})
    search = Trials(pipe, calls, base, known, tell)
    if full_steps >= search.steps:
        raise ValueError(f"nothing is left to calibrate: {full_steps} full steps of the {search.steps} that are made")
    growing = Growing(full_steps).start(Setting(search.steps, predicts(pipe.scheduler), history)).planned
    best = search.search(full_steps, growing, trials)
    judged = {
        "samples": sum(map(len, search.reference)),
        "measure": "mean PSNR in dB to full compute of the same seeds, on the samples that it was found on",
        "plan": search.judge(best),
        "growing": search.judge(growing),
        "trials": search.tried,
    }
    known.write()
    return Preset(origin, search.steps, Plan(best).full_steps, base, datetime.date.today().isoformat(), judged)


def _options(pipe: Any, steps: int) -> dict[str, Any]:
    taken = inspect.signature(pipe.__call__).parameters.values()
    named = any(each.name == "output_type" or each.kind is each.VAR_KEYWORD for each in taken)
    return {"num_inference_steps": steps} | ({"output_type": "np"} if named else {})


def _pictures(output: Any) -> Tensor:
    """What a pipeline has made, pictures, clips or sound, as a tensor."""
    try:
        return torch.as_tensor(output[0]).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the pipeline's output cannot be compared: {error}") from error
