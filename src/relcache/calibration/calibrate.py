"""Find the full steps that suit a model, a scheduler and a budget best. See `calibrate`."""

from __future__ import annotations

import datetime
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relcache.api import find_transformers
from relcache.calibration.progress import Progress
from relcache.calibration.trials import Tell, Trials
from relcache.method import Method
from relcache.methods import chosen_method
from relcache.origin import Origin
from relcache.presets import Preset
from relcache.sampler import predicts
from relcache.schedules import Growing
from relcache.schedules.base import Setting, check_count


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
    one full step after the other is moved as long as the final pictures come nearer.

    Measuring costs about as much as 10 requests of full compute for each call, a trial as much as a cached request.

    Args:
        pipe: a diffusers pipeline.
        calls: arguments of a call each, such as `{"prompt": "a cat"}`; a few that are like those to come. Number of
            steps, generator and output_type are set here.
        full_steps: the budget.
        num_inference_steps: steps of each request.
        method: the one whose forecaster, corrector and granularity are used, by default `relcache.auto()`.
        trials: the most plans that are judged by final pictures; fewer where no neighbour is better.
        seed: call i has the generator of seed + i.
        progress: a file into which whatever has been measured is written; where it is there, this goes on from it.
        tell: called with what is being done, and how many of how many parts are.

    Raises:
        TypeError: not a pipeline.
        ValueError: no calls, a budget that leaves no step to skip, an argument that is set here, a progress file of
            something else.
    """
    if not callable(pipe) or not hasattr(pipe, "scheduler"):
        raise TypeError(f"calibrate takes a diffusers pipeline, got {type(pipe).__name__}")
    if not calls:
        raise ValueError("calibrate needs a call or more: [{'prompt': 'a cat'}], say")
    own = {"num_inference_steps", "generator", "output_type", "return_dict"}
    taken = sorted(own & {name for call in calls for name in call})
    if taken:
        raise ValueError(f"{', '.join(taken)} is set by calibrate: leave it out of the calls")

    def sample() -> Tensor:
        made = []
        for index, call in enumerate(calls):
            generator = torch.Generator().manual_seed(seed + index)
            made.append(_pictures(pipe(**call, **_options(pipe, num_inference_steps), generator=generator)))
        return torch.cat(made)

    asked = [*map(str, calls), seed]
    return find_plan(pipe, sample, full_steps, num_inference_steps, method, trials, progress, tell, asked)


def find_plan(
    pipe: Any,
    sample: Callable[[], Tensor],
    full_steps: int,
    steps: int,
    method: Method | str | None = None,
    trials: int = 60,
    progress: str | Path | None = None,
    tell: Tell = lambda what, done, total: None,
    asked: Any = None,
) -> Preset:
    """As `calibrate`, where `sample` makes the pictures, (n, …), with the same seeds each time.

    `asked` says what `sample` asks for: a progress file of something else is refused.
    """
    check_count("full_steps", full_steps, 1)
    check_count("trials", trials, 0)
    if full_steps >= steps:
        raise ValueError(f"nothing is left to calibrate: {full_steps} full steps of {steps}")
    base = chosen_method(method)
    if base.made_for is not None or base.finer != 1:
        raise ValueError("calibrate takes a method that is neither a preset nor finer")
    history = base.forecaster.full_steps_needed
    if full_steps < history:
        raise ValueError(f"{base.forecaster} needs {history} full steps, and the budget is {full_steps}")
    scheduler = pipe.scheduler
    origin = Origin.of(find_transformers(pipe)[0], scheduler)
    Preset(origin, steps, (0,), base).to_dict()  # what a file cannot hold is refused before anything is computed
    growing = Growing(full_steps).start(Setting(steps, predicts(scheduler), history)).planned
    key = Preset(origin, steps, growing, base).to_dict() | {"asked": asked, "date": ""}
    trial = Trials(pipe, sample, steps, base, Progress(progress, json.loads(json.dumps(key, default=str))), tell)
    best = trial.search(full_steps, growing, trials)
    judged = {
        "samples": len(trial.reference),
        "measure": "mean PSNR in dB to full compute of the same seeds, on the samples that it was found on",
        "plan": trial.judge(best),
        "growing": trial.judge(growing),
        "trials": len(trial.known.trials),
    }
    return Preset(origin, steps, best, base, datetime.date.today().isoformat(), judged)


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
