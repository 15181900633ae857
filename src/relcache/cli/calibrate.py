"""`relcache calibrate` and `relcache presets`: a threshold or a plan for a budget, and the plans that there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from relcache.bench import files
from relcache.bench.comparison.arguments import calibration_conditions, call_options, conditions_for, named_conditions
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.comparison.entries import named_config
from relcache.bench.sampling.batches import Sampler, smaller
from relcache.bench.sampling.budgets import calibration_seeds, threshold_for, with_first_values
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache.calibration import find_plan
from relcache.cli.options import Batch, Device, DType, Frames, Guidance, Model, Offload, Option, Size, Steps
from relcache.cli.terminal import console, errors, plain_errors, progress_bar, relief_of, say
from relcache.methods import method_from_config
from relcache.presets import Preset, shipped


def calibrate(
    nfc: Annotated[
        float | None, typer.Option(help="Find the threshold that gives this mean number of full steps.")
    ] = None,
    full_steps: Annotated[
        int | None, typer.Option(help="Find the best plan of exactly so many full steps instead, and save it.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="With --nfc rfc:order=2, rcs:order=1, …, by default rfc; with --full-steps by default auto."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt to calibrate on; give the option again for more.")
    ] = None,
    model: Model = None,
    steps: Steps = 50,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    option: Option = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples.")] = 16,
    trials: Annotated[int, typer.Option(min=0, help="Most plans that are judged by pictures; with --full-steps.")] = 60,
    out: Annotated[Path | None, typer.Option(help="File of the preset; with --full-steps.")] = None,
    batch: Batch = 16,
    device: Device = "auto",
    dtype: DType = "float32",
    offload: Offload = "none",
) -> None:
    """Find the threshold, or the plan, at which a method has a number of full steps.

    A threshold is printed. A plan is saved as a preset for this model and scheduler: relcache sample --method
    preset:name=FILE, or relcache.enable(pipe, "preset:name=FILE"). Interrupted, the same command goes on.
    """
    relief = relief_of(batch, device, dtype, offload)
    with plain_errors(relief, resumes=full_steps is not None):
        if (nfc is None) == (full_steps is None):
            raise ValueError("give --nfc for a threshold, or --full-steps for a plan")
        if out is not None and full_steps is None:
            raise ValueError("--out is the file of a plan: give --full-steps, not --nfc")
        model = model or ("small-flux" if prompt else DEFAULT_MODEL)
        config = named_config(method or ("rfc" if full_steps is None else "auto"))
        chosen = method_from_config(with_first_values(config) if full_steps is None else config)
        options = call_options(model, guidance, size, frames, option or [])
        place = out or Path(f"{Path(model).name}-{full_steps}-of-{steps}.json")
        if full_steps is not None:
            if not 0 < full_steps < steps:
                raise ValueError(f"--full-steps is from 1 to {steps - 1}, one less than --steps; got {full_steps}")
            files.check_folder(place.parent, [place.name])
        pipeline = load_pipeline(model, device, dtype, offload)
        relief += smaller(pipeline)
        sampler = Sampler(pipeline, steps, batch, options)
        seeds = calibration_seeds(samples)
        if full_steps is None:
            assert nfc is not None
            asked = calibration_conditions(pipeline, named_conditions(pipeline, prompt, None)[0], samples)
            _threshold(sampler, chosen, nfc, seeds, asked)
            return
        if not prompt and sampler.condition == "prompt" and model not in {task.model for task in SMALL.values()}:
            raise ValueError(f"{model} is asked by --prompt; give a few that are like those to come")
        asked = conditions_for(model, prompt, seeds)
        progress = place.with_suffix(".progress.json")

        def call(start: int) -> Callable[[], torch.Tensor]:
            part = slice(start, start + batch)
            return lambda: sampler.call(seeds[part], asked[part])

        with progress_bar() as bar:
            task = bar.add_task("loading", total=None)

            def tell(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            calls = [call(start) for start in range(0, samples, batch)]
            preset = find_plan(pipeline, calls, full_steps, chosen if method else None, trials, progress, tell)
        preset.save(place)
        say(f"full steps: {', '.join(map(str, preset.full_steps))}")
        say(_judged(preset.judged))
        say(f"Written to {place}; {progress} holds what was measured")


def _threshold(sampler: Sampler, method: Any, nfc: float, seeds: list[int], asked: list[int | str]) -> None:
    found: list[tuple[float, float]] = []

    def tell(threshold: float, count: float) -> None:
        found.append((threshold, count))
        errors.print(f"threshold {threshold:<8g} {count:g} full steps")

    threshold = threshold_for(sampler, method, nfc, seeds, asked, tell=tell)
    reached = dict(found).get(threshold, float(sampler.steps) if threshold == 0 else None)
    if reached is not None and reached != nfc:
        errors.print(f"no threshold gave {nfc:g} full steps; the nearest gives {reached:g}")
    console.print(f"{threshold:g}", highlight=False)


def _judged(judged: Any) -> str:
    if not {"plan", "growing", "samples"} <= set(judged):
        return "not judged"
    return (
        f"{judged['plan']:.1f} dB to full compute, {judged['growing']:.1f} dB by the plan that needs no calibration "
        f"({judged['samples']} samples, those that it was found on)"
    )


def list_presets(
    file: Annotated[list[Path] | None, typer.Argument(help="Files of presets to show beside those shipped.")] = None,
) -> None:
    """List the presets that are shipped, and those in files: what they are for, and their full steps."""
    with plain_errors([]):
        presets = {**shipped(), **{str(path): Preset.load(path) for path in file or []}}
        for name, preset in presets.items():
            models = " and ".join(model.class_name for model in preset.origin.models.values())
            budget = f"{len(preset.full_steps)} of {preset.steps} steps"
            say(f"{name}: {budget} of {models}, {preset.origin.scheduler.class_name}")
            say(f"  full steps: {', '.join(map(str, preset.full_steps))}")
            say(f"  {_judged(preset.judged)}")
