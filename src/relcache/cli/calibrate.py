"""`relcache calibrate`: the threshold or plan that gives a number of full steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relcache.cli import options
from relcache.cli.terminal import begin, errors, plain_errors, progress_bar, relief_of, say, verdict

if TYPE_CHECKING:
    from relcache.bench.sampling.batches import Sampler
    from relcache.method import Method


def calibrate_method(
    nfc: Annotated[float | None, typer.Option(help="Find the threshold for this mean number of full steps.")] = None,
    full_steps: Annotated[int | None, typer.Option(help="Find the best plan with this number of full steps.")] = None,
    method: Annotated[str | None, typer.Option(help="rfc:order=2, …; by default rfc, or auto for a plan.")] = None,
    prompt: options.Prompts = None,
    model: options.Model = None,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    size: options.Size = None,
    frames: options.Frames = None,
    option: options.Option = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples.")] = 16,
    trials: Annotated[int, typer.Option(min=0, help="Most plans to judge by pictures, for --full-steps.")] = 60,
    out: Annotated[Path | None, typer.Option(help="File for the preset, for --full-steps.")] = None,
    batch: options.Batch = 16,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    offload: options.Offload = "none",
) -> None:
    """Find the threshold or the plan that gives a method a number of full steps.

    A threshold is printed. A plan is saved as a preset for this model and scheduler: relcache sample --method
    preset:name=FILE, or relcache.enable(pipe, "preset:name=FILE"). The same command resumes an interrupted search.
    """
    with plain_errors(resumes=full_steps is not None) as relief:
        if (nfc is None) == (full_steps is None):
            raise ValueError("give --nfc for a threshold, or --full-steps for a plan")
        if out is not None and full_steps is None:
            raise ValueError("--out is the file for a plan: give --full-steps, not --nfc")
        chosen = _chosen(method or ("rfc" if full_steps is None else "auto"), full_steps is None)
        model = options.model_or_default(model, prompt)

        begin()
        from relcache.bench import files
        from relcache.bench.comparison.arguments import (
            calibration_conditions,
            call_options,
            conditions_for,
            named_conditions,
        )
        from relcache.bench.comparison.benchmarks import SMALL
        from relcache.bench.sampling.batches import Sampler, smaller
        from relcache.bench.sampling.budgets import calibration_seeds
        from relcache.bench.sampling.pipelines import load_pipeline
        from relcache.calibration import find_plan

        relief += relief_of(batch, device, dtype, offload)
        arguments = call_options(model, guidance, size, frames, option or [])
        file = out or Path(f"{Path(model).name}-{full_steps}-of-{steps}.json")
        if full_steps is not None:
            if not 0 < full_steps < steps:
                raise ValueError(f"--full-steps takes 1 to {steps - 1}, one less than --steps; got {full_steps}")
            files.check_folder(file.parent, [file.name])
        pipeline = load_pipeline(model, device, dtype, offload)
        relief += smaller(pipeline)
        sampler = Sampler(pipeline, steps, batch, arguments)
        seeds = calibration_seeds(samples)
        if full_steps is None:
            assert nfc is not None
            conditions = calibration_conditions(pipeline, named_conditions(pipeline, prompt, None)[0], samples)
            _print_threshold(sampler, chosen, nfc, seeds, conditions)
            return
        if not prompt and sampler.condition == "prompt" and model not in {task.model for task in SMALL.values()}:
            raise ValueError(f"{model} takes prompts: give --prompt, a few that resemble later ones")
        conditions = conditions_for(model, prompt, seeds)
        progress = file.with_suffix(".progress.json")
        parts = [slice(start, start + batch) for start in range(0, samples, batch)]
        calls = [partial(sampler.call, seeds[part], conditions[part]) for part in parts]
        with progress_bar() as bar:
            task = bar.add_task("loading", total=None)

            def tell(what: str, done: int, total: int) -> None:
                bar.update(task, description=what, completed=done, total=total)

            preset = find_plan(pipeline, calls, full_steps, chosen if method else None, trials, progress, tell)
        preset.save(file)
        say(f"full steps: {', '.join(map(str, preset.full_steps))}")
        say(verdict(preset))
        say(f"Written to {file}; {progress} holds the measurements")


def _chosen(text: str, for_threshold: bool) -> Method:
    """Return the method of a text; if a threshold is searched for, with a first value of it.

    Raises:
        ValueError: an unknown method, or wrong options.
    """
    from relcache.bench.comparison.entries import named_config
    from relcache.bench.sampling.budgets import with_first_values
    from relcache.methods import method_from_config

    config = named_config(text)
    return method_from_config(with_first_values(config) if for_threshold else config)


def _print_threshold(
    sampler: Sampler, method: Method, nfc: float, seeds: list[int], conditions: list[int | str]
) -> None:
    """Find a method's threshold, with progress on stderr, and print it alone to stdout."""
    from relcache.bench.sampling.budgets import threshold_for

    found: list[tuple[float, float]] = []

    def tell(threshold: float, count: float) -> None:
        found.append((threshold, count))
        errors.print(f"threshold {threshold:<8g} {count:g} full steps")

    threshold = threshold_for(sampler, method, nfc, seeds, conditions, tell=tell)
    reached = dict(found).get(threshold, float(sampler.steps) if threshold == 0 else None)
    if reached is not None and reached != nfc:
        errors.print(f"no threshold gave {nfc:g} full steps; the nearest gives {reached:g}")
    say(f"{threshold:g}")
