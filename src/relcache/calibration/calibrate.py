"""Find the full steps that suit a model, a scheduler and a budget best."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relcache.api import enable, is_enabled
from relcache.calibration.progress import Progress
from relcache.calibration.trials import PictureCall, Tell, Trials
from relcache.checks import check_whole
from relcache.correctors.sampler import predicts
from relcache.method import Method
from relcache.methods import chosen_method
from relcache.models.origin import Origin
from relcache.presets import Preset
from relcache.schedules import Growing, Plan
from relcache.schedules.base import Setting
from relcache.session.components import find_transformers, refuse_other_caches

OWN = ("num_inference_steps", "generator", "output_type", "return_dict")  # arguments that `calibrate` sets


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

    First, measure the error that each gap causes in the sample after it, and how it grows to the final sample. Then
    take the plan with the least sum of errors. Start from that plan or from `Growing`'s, whichever is closer to full
    compute. Move full steps as long as the final pictures come closer. If the scheduler does not make one update per
    step, skip the measurement and start from `Growing`'s plan.

    For each call, the measurement costs about as much as 10 requests of full compute. A trial costs as much as a
    cached request.

    Args:
        pipe: a diffusers pipeline on which relcache is not enabled.
        calls: a few dicts of call arguments, such as `{"prompt": "a cat"}`, that resemble later calls.
        full_steps: the budget.
        num_inference_steps: steps of each call.
        method: its forecaster, corrector and granularity are used; by default `relcache.auto()`.
        trials: the most plans to judge by final pictures; the first two are always judged.
        seed: call i has a generator with seed + i.
        progress: a file that keeps each measurement; a later call with the same file resumes from it.
        tell: called with the current activity, the parts done and the number of parts.

    Raises:
        TypeError: `pipe` is not a pipeline.
        ValueError: there are no calls, a call has an argument that `calibrate` sets, or the budget does not fit. Or a
            cache is enabled on the pipeline, or `progress` belongs to another calibration.
    """
    if not callable(pipe) or not hasattr(pipe, "scheduler"):
        raise TypeError(f"calibrate takes a diffusers pipeline, got {type(pipe).__name__}")
    if isinstance(calls, (str, Mapping)) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError("calls is a list of dicts of arguments, such as [{'prompt': 'a cat'}]")
    if not calls:
        raise ValueError("calibrate needs at least one call, such as [{'prompt': 'a cat'}]")
    check_whole("num_inference_steps", num_inference_steps, 2)
    taken = sorted({name for call in calls for name in call if name in OWN})
    if taken:
        raise ValueError(f"{', '.join(taken)} is set by calibrate: leave it out of the calls")
    check_whole("full_steps", full_steps, 1)
    if full_steps >= num_inference_steps:
        raise ValueError(f"nothing is left to calibrate: {full_steps} full steps of {num_inference_steps}")

    def make_pictures(index: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + index)
        return _pictures(pipe(**calls[index], **_options(pipe, num_inference_steps), generator=generator))

    picture_calls = [partial(make_pictures, index) for index in range(len(calls))]
    return find_plan(pipe, picture_calls, full_steps, method, trials, progress, tell)


def find_plan(
    pipe: Any,
    calls: Sequence[PictureCall],
    full_steps: int,
    method: Method | str | None = None,
    trials: int = 60,
    progress: str | Path | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Preset:
    """Find a plan as `calibrate` does; each of `calls` is one request that returns the same pictures (n, …), float."""
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
    with enable(pipe, method) as handle:  # raises at once if the pipeline cannot be cached
        base = replace(base, granularity=handle.granularity)
    origin = Origin.of(models, pipe.scheduler)
    blank = Preset(origin, 1, (0,), base).to_dict()  # raises if a file cannot hold the method
    known = Progress(progress, {**blank, "full_steps": full_steps})
    tried = Trials(pipe, calls, base, known, tell)
    if full_steps >= tried.steps:
        raise ValueError(f"nothing is left to calibrate: {full_steps} full steps of {tried.steps} steps")
    growing = Growing(full_steps).start(Setting(tried.steps, predicts(pipe.scheduler), history)).planned
    best = tried.search(full_steps, growing, trials)
    judged = {
        "samples": sum(map(len, tried.reference)),
        "measure": "mean PSNR in dB to full compute of the same seeds, on the samples that it was found on",
        "plan": tried.judge(best),
        "growing": tried.judge(growing),
        "trials": len(known.trials),
    }
    known.write()
    return Preset(origin, tried.steps, Plan(best).full_steps, base, datetime.date.today().isoformat(), judged)


def _options(pipe: Any, steps: int) -> dict[str, Any]:
    """Return the number of steps and, if the pipeline takes it, the output type for arrays."""
    parameters = inspect.signature(pipe.__call__).parameters.values()
    named = any(value.name == "output_type" or value.kind is value.VAR_KEYWORD for value in parameters)
    return {"num_inference_steps": steps} | ({"output_type": "np"} if named else {})


def _pictures(output: Any) -> Tensor:
    """Return a pipeline's pictures, clips or sound as a float32 tensor (n, …)."""
    try:
        return torch.as_tensor(output[0]).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the pipeline's output cannot be compared: {error}") from error
