"""`relcache sample`: pictures or clips by one method, or by several side by side."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relcache.bench.tables import TOLERANCE
from relcache.cli import options
from relcache.cli.terminal import begin, console, plain_errors, progress_bar, relief_of, say, terminal_table

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from relcache.bench.sampling.batches import Samples
    from relcache.method import Method


def sample_pictures(
    context: typer.Context,
    prompt: options.Prompts = None,
    classes: Annotated[str | None, typer.Option(help="Class names or numbers, for class-conditional models.")] = None,
    method: Annotated[str, typer.Option(help="auto, full, rfc:order=2,threshold=0.12, fora:interval=4, …")] = "auto",
    full_steps: Annotated[int | None, typer.Option(help="Exact number of full steps, for auto, rfc and rcs.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Measured speed-up of the steps, such as 3; for auto.")] = None,
    compare: Annotated[str | None, typer.Option(help="Methods side by side: full,fora,rfc; with --nfc.")] = None,
    nfc: Annotated[int | None, typer.Option(help="Number of full steps; sets the interval or threshold.")] = None,
    model: options.Model = None,
    steps: options.Steps = 50,
    guidance: options.Guidance = None,
    size: options.Size = None,
    frames: options.Frames = None,
    option: options.Option = None,
    seed: options.Seed = 0,
    batch: options.Batch = 32,
    out: Annotated[Path, typer.Option(help="Folder for the pictures or clips.")] = Path("relcache-samples"),
    device: options.Device = "auto",
    dtype: options.DType = "float32",
    offload: options.Offload = "none",
) -> None:
    """Make a picture or clip for each prompt or class and print the report; with --compare, one with each method."""
    with plain_errors() as relief:
        if nfc is not None and (full_steps is not None or speedup is not None):
            raise ValueError("give one of --nfc, --full-steps and --speedup")
        passed = method if compare is None else compare
        configs = _configs(passed, compare is None, nfc, steps, full_steps, speedup)  # mistakes before heavy imports
        model = options.model_or_default(model, prompt)

        begin()
        from relcache.bench import files
        from relcache.bench.comparison.arguments import calibration_conditions, call_options, named_conditions
        from relcache.bench.figures.sheet import SheetRow
        from relcache.bench.figures.text import drawable
        from relcache.bench.sampling.batches import Sampler, smaller
        from relcache.bench.sampling.budgets import at_budget, calibration_seeds
        from relcache.bench.sampling.gallery import write_each, write_sheets
        from relcache.bench.sampling.pipelines import load_pipeline
        from relcache.methods import method_from_config, method_to_text

        relief += relief_of(batch, device, dtype, offload)
        files.check_folder(out, ["sheet.png", "report.json"])
        arguments = call_options(model, guidance, size, frames, option or [])
        pipeline = load_pipeline(model, device, dtype, offload)
        relief += smaller(pipeline)
        sampler = Sampler(pipeline, steps, batch, arguments)
        conditions, names = named_conditions(pipeline, prompt, classes)
        seeds = [seed + index for index in range(len(conditions))]
        results: dict[str, Samples] = {}
        found: dict[str, Method] = {}  # methods with a budget that was searched for
        with progress_bar() as bar:
            task = bar.add_task("loading", total=len(configs) * len(seeds))
            labels: list[str] = []
            for text, config in configs.items():
                bar.update(task, description=text)
                if nfc is None:
                    chosen = method_from_config(config).with_budget(full_steps=full_steps, speedup=speedup)
                else:
                    calibration = calibration_conditions(pipeline, conditions, min(8, len(conditions)))
                    tell = _teller(bar, task, text)
                    chosen = at_budget(config, nfc, sampler, calibration_seeds(len(calibration)), calibration, tell)
                    found |= {text: chosen} if chosen.schedule.needs_signal else {}
                results[text] = sampler.run(chosen, seeds, conditions, lambda count: bar.advance(task, count))
                label = f"-{files.slug(text)}" if compare else ""
                while label in labels:  # texts that differ only in punctuation have the same slug
                    label += "-again"
                labels.append(label)
                stems = [f"{i:03d}-{name}-seed{s}{label}" for i, (name, s) in enumerate(zip(names, seeds, strict=True))]
                images = results[text].images.numpy()
                files.write_or_elsewhere(out, partial(write_each, images=images, names=stems))
        rows = [
            SheetRow(_row_caption(text, samples, results.get("full")), samples.images.numpy())
            for text, samples in results.items()
        ]
        captions = [str(prompt) for prompt in conditions] if sampler.condition == "prompt" else []
        reports = [report.to_dict() for samples in results.values() for report in samples.reports]
        for text, samples in results.items():
            for report in samples.reports:
                say(str(report))
            if nfc is not None and text != "full" and abs(samples.nfc - nfc) > TOLERANCE:
                say(f"{text} has {samples.nfc:g} full steps, not {nfc}")
            say(f"{text}: {len(seeds)} in {samples.seconds:.1f} s")
        if compare is not None:
            console.print(_table(results))
        for text, chosen in found.items():
            say(f"{text} again, without calibration: {_again(context, method_to_text(chosen))}")
        title = f"{drawable(model, 'the model')}, {steps} steps"
        files.write_or_elsewhere(out, lambda folder: write_sheets(folder, rows, title, captions))
        files.write_or_elsewhere(out, lambda folder: files.write_json(folder / "report.json", reports))
        say(f"Written to {out}")


def _again(context: typer.Context, method: str) -> str:
    """Return the command of `context` with `method` in place of the options that searched for it."""
    words = ["relcache", "sample", "--method", method]
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if name in ("method", "compare", "nfc") or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [option.opts[0], str(each)]
    return shlex.join(words)


def _teller(bar: Progress, task: TaskID, text: str) -> Callable[[float, float], None]:
    """Return a function that shows each threshold that a search tries."""
    return lambda threshold, count: bar.update(
        task, description=f"{text}: τ = {threshold:g} gives {count:g} full steps"
    )


def _configs(
    passed: str, one: bool, nfc: int | None, steps: int, full_steps: int | None, speedup: float | None
) -> dict[str, Any]:
    """Return the config of each method in the list `passed`.

    Raises:
        ValueError: an unknown method, wrong options, or a budget that a method does not take.
    """
    from relcache.bench.comparison.entries import named_config, split_methods
    from relcache.bench.sampling.budgets import check_budget, with_any_budget
    from relcache.methods import method_from_config

    texts = [text.strip() for text in split_methods(passed)]
    if not texts or (one and len(texts) > 1):
        raise ValueError(f"--method takes one method, --compare one or more; got {passed!r}")
    configs = {text: named_config(text) for text in texts}
    for config in configs.values():
        method_from_config(config if nfc is None else with_any_budget(config)).with_budget(
            full_steps=full_steps, speedup=speedup
        )
        if nfc is not None:
            check_budget(config, nfc, steps)
    return configs


def _table(results: Mapping[str, Samples]) -> Table:
    """Return methods side by side: full steps, PSNR to full compute if that was sampled too, seconds."""
    from relcache.bench.quality.metrics.pair import psnr

    full = results.get("full")
    rows = [
        {
            "method": text,
            "nfc": samples.nfc,
            "psnr": None if full is None or samples is full else float(psnr(samples.images, full.images).mean()),
            "seconds": samples.seconds,
        }
        for text, samples in results.items()
    ]
    number = len(next(iter(results.values())).images)
    columns = [
        ("method", "method", ""),
        ("full steps", "nfc", ".4g"),
        ("PSNR, dB", "psnr", ".1f"),
        ("s", "seconds", ".3g"),
    ]
    return terminal_table(rows, f"{number} sample{'s' * (number != 1)}, seconds of all together", columns)


def _row_caption(name: str, samples: Samples, full: Samples | None) -> str:
    """Return the method, its number of full steps and, if full compute was sampled too, its PSNR."""
    from relcache.bench.quality.metrics.pair import psnr

    caption = f"{name}\n{samples.nfc:.4g} full"
    if full is None or samples is full:
        return caption
    return f"{caption}, {float(psnr(samples.images, full.images).mean()):.1f} dB"
