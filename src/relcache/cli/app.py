"""The command line: reads options, calls the benchmarks, prints. Thin."""

from __future__ import annotations

import platform
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from relcache import __version__
from relcache.bench import files
from relcache.bench.comparison.analysis import analyze as record
from relcache.bench.comparison.arguments import calibration_conditions, call_options, conditions_for, named_conditions
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.comparison.entries import choose, named_config, split_methods
from relcache.bench.comparison.prepare import Asked, tasks
from relcache.bench.figures.sheet import SheetRow
from relcache.bench.figures.text import drawable
from relcache.bench.pages.illustrations import illustrate, summary
from relcache.bench.quality.external import make as make_environment
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.sampling.batches import Sampler, Samples, smaller
from relcache.bench.sampling.budgets import at_budget, calibration_seeds, check_budget, with_any_budget
from relcache.bench.sampling.gallery import slug, write_each, write_sheets
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline, usable_device
from relcache.bench.tables import TOLERANCE
from relcache.cli.bench import bench_app
from relcache.cli.calibrate import calibrate, list_presets
from relcache.cli.compare import compare as run_comparison
from relcache.cli.models import list_models
from relcache.cli.options import (
    Batch,
    CalibrationSamples,
    Device,
    DType,
    Frames,
    Guidance,
    Methods,
    Model,
    Offload,
    Option,
    Seed,
    Size,
    Steps,
    Targets,
)
from relcache.cli.terminal import console, plain_errors, progress_bar, relief_of, say
from relcache.methods import method_from_config, named_granularity

app = typer.Typer(
    help="Diffusion transformers sample faster by Relational Feature Caching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(bench_app, name="bench")


@app.command()
def demo(
    task: Annotated[str, typer.Option(help="class, text, video, or all of them.")] = "class",
    samples: Annotated[int, typer.Option(help="Pictures or clips per method.")] = 16,
    steps: Steps = 50,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder; each task has one of its own in it.")] = Path("relcache-demo"),
    methods: Methods = None,
    nfc: Targets = None,
    guidance: Guidance = None,
    batch: Batch = 32,
    calibration_samples: CalibrationSamples = 6,
    device: Device = "auto",
) -> None:
    """Sample the shipped models with every method at equal cost and compare with full compute.

    class: a class-conditional DiT; text: pictures by FLUX's architecture; video: clips by HunyuanVideo's. Prints the
    table and writes tables and sheets. Run again with the same options, it goes on from what is there.
    """
    with plain_errors(relief_of(batch), resumes=True):
        asked = Asked(
            methods=methods, nfc=nfc, samples=samples, steps=steps, seeds=str(seed), guidance=guidance, batch=batch,
            calibration_samples=calibration_samples, device=usable_device(device),
        )  # fmt: skip
        for name in tasks(task):
            run_comparison(SMALL[name], asked, out / name)


@app.command()
def analyze(
    model: Model = None,
    methods: Methods = "fora,taylorseer-1,rfe-1",
    interval: Annotated[int, typer.Option(min=2, help="Steps from one full step to the next.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="Pictures or clips.")] = 8,
    steps: Steps = 50,
    seed: Seed = 0,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt instead of the shipped model's own; give it again for more.")
    ] = None,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    option: Option = None,
    module: Annotated[
        list[str] | None, typer.Option(help="A module to show, as relcache analyze names it; again for more.")
    ] = None,
    granularity: Annotated[str, typer.Option(help="What is forecast: each module, block, or the stack of blocks.")] = (
        "module"
    ),
    batch: Batch = 4,
    out: Annotated[Path, typer.Option(help="Folder for numbers and figures.")] = Path("relcache-analysis"),
    device: Device = "auto",
    dtype: DType = "float32",
    offload: Offload = "none",
) -> None:
    """Record how a model's features change and how far each forecast strays, in one run with full compute.

    All methods forecast from the same full steps: what differs is the forecaster. Draws the paper's figures 1 and 2.
    """
    with plain_errors(relief_of(batch, device, dtype, offload), resumes=True):
        model = model or ("small-flux" if prompt else DEFAULT_MODEL)
        entries = choose(methods)
        seeds = [seed + index for index in range(samples)]
        with progress_bar() as bar:
            task = bar.add_task("full compute", total=samples)
            known = record(
                model, entries, conditions_for(model, prompt, seeds), seeds, out, interval=interval, steps=steps,
                batch=batch, options=call_options(model, guidance, size, frames, option or []),
                device=usable_device(device), dtype=dtype, offload=offload, granularity=named_granularity(granularity),
                modules=module or (), advance=lambda count: bar.advance(task, count),
            )  # fmt: skip
            written = illustrate(out, module or ())
        found = summary(known)
        for key, value in found.items():
            if isinstance(value, float):
                console.print(f"{key}: {value:.3g}", highlight=False)
        for name, value in found["relative L1 error of the output"].items():
            console.print(f"relative L1 error of the output, {name}: {value:.3g}", highlight=False)
        say(f"Written to {out}: {', '.join(path.name for path in written)}")


@app.command()
def figures(
    folder: Annotated[Path, typer.Argument(help="Folder that bench, demo or analyze has written.")],
    module: Annotated[
        list[str] | None, typer.Option(help="A module of an analysis to show; give it again for more.")
    ] = None,
) -> None:
    """Draw figures and sheets again from saved results."""
    with plain_errors([]):
        if folder.is_dir():
            files.check_folder(folder)
        for path in illustrate(folder, module or ()):
            say(str(path))


@app.command()
def environment(
    name: Annotated[str, typer.Argument(help="image-reward or vbench.")],
    python: Annotated[str | None, typer.Option(help="Another Python to make it with; both want 3.8 to 3.11.")] = None,
) -> None:
    """Make the environment of its own that a metric needs; bench then uses it by itself."""
    with plain_errors([]):
        folder = make_environment(name, python, tell=lambda text: console.print(text, highlight=False, markup=False))
        console.print(f"made {folder}", highlight=False)


@app.command()
def sample(
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; give the option again for more pictures or clips.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names or numbers, for class-conditional models.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="auto, or such as rfc:order=2,threshold=0.12 or fora:interval=4 or full.")
    ] = "auto",
    full_steps: Annotated[
        int | None, typer.Option(help="A budget: exactly so many full steps; of auto, rfc and rcs.")
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="Instead, how many times faster the steps are to run, by measured time; of auto."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="Comma-separated methods side by side instead: full,fora,taylorseer,rfc; with --nfc."),
    ] = None,
    nfc: Annotated[
        int | None, typer.Option(help="Number of full steps: sets the interval, or first finds the threshold.")
    ] = None,
    model: Model = None,
    steps: Steps = 50,
    guidance: Guidance = None,
    size: Size = None,
    frames: Frames = None,
    option: Option = None,
    seed: Seed = 0,
    batch: Batch = 32,
    out: Annotated[Path, typer.Option(help="Folder for the pictures or clips.")] = Path("relcache-samples"),
    device: Device = "auto",
    dtype: DType = "float32",
    offload: Offload = "none",
) -> None:
    """Make a picture or a clip per prompt or class, and print the report; or one per method, and compare them."""
    relief = relief_of(batch, device, dtype, offload)
    with plain_errors(relief):
        model = model or ("small-flux" if prompt else DEFAULT_MODEL)
        if nfc is not None and (full_steps is not None or speedup is not None):
            raise ValueError("give one of --nfc, --full-steps and --speedup")
        given = split_methods(method if compare is None else compare)
        if not given or (compare is None and len(given) > 1):
            asked_for = repr(method) if compare is None else repr(compare)
            raise ValueError(f"--method takes one method, --compare one or more; got {asked_for}")
        configs = {text: named_config(text) for text in given}
        for config in configs.values():  # a mistake shows before anything is loaded
            method_from_config(config if nfc is None else with_any_budget(config)).with_budget(full_steps, speedup)
            if nfc is not None:
                check_budget(config, nfc, steps)
        files.check_folder(out, ["sheet.png", "report.json"])
        options = call_options(model, guidance, size, frames, option or [])
        pipeline = load_pipeline(model, device, dtype, offload)
        relief += smaller(pipeline)
        sampler = Sampler(pipeline, steps, batch, options)
        asked, names = named_conditions(pipeline, prompt, classes)
        seeds = [seed + index for index in range(len(asked))]
        made: dict[str, Samples] = {}
        with progress_bar() as bar:
            task = bar.add_task("loading", total=len(configs) * len(seeds))
            labels: list[str] = []
            for text, config in configs.items():
                bar.update(task, description=text)
                if nfc is None:
                    chosen = method_from_config(config).with_budget(full_steps, speedup)
                else:
                    calibration = calibration_conditions(pipeline, asked, min(8, len(asked)))
                    chosen = at_budget(config, nfc, sampler, calibration_seeds(len(calibration)), calibration)
                made[text] = sampler.run(chosen, seeds, asked, lambda count: bar.advance(task, count))
                label = f"-{slug(text)}" if compare else ""
                while label in labels:  # texts that differ in signs alone have one slug
                    label += "-again"
                labels.append(label)
                stems = [f"{i:03d}-{name}-seed{s}{label}" for i, (name, s) in enumerate(zip(names, seeds, strict=True))]
                images = made[text].images.numpy()
                files.write_or_elsewhere(out, partial(write_each, images=images, names=stems))
        rows = [
            SheetRow(_caption(text, samples, made.get("full")), samples.images.numpy())
            for text, samples in made.items()
        ]
        captions = [str(prompt) for prompt in asked] if sampler.condition == "prompt" else []
        reports = [report.to_dict() for samples in made.values() for report in samples.reports]
        for text, samples in made.items():
            for report in samples.reports:
                say(str(report))
            say(f"{text}: {len(seeds)} in {samples.seconds:.1f} s")
            if nfc is not None and text != "full" and abs(samples.nfc - nfc) > TOLERANCE:
                say(f"{text} has {samples.nfc:g} full steps, not the {nfc} that were asked for")
        title = f"{drawable(model, 'the model')}, {steps} steps"
        files.write_or_elsewhere(out, lambda place: write_sheets(place, rows, title, captions))
        files.write_or_elsewhere(out, lambda place: files.write_json(place / "report.json", reports))
        say(f"Written to {out}")


app.command("calibrate")(calibrate)
app.command("presets")(list_presets)
app.command("models")(list_models)


@app.command()
def version() -> None:
    """Print the versions of relcache, torch and Python."""
    console.print(
        f"relcache {__version__}, torch {torch.__version__}, Python {platform.python_version()}", highlight=False
    )


def _caption(name: str, samples: Samples, full: Samples | None) -> str:
    """The caption of a row: the method, its full steps, and its PSNR if full compute is there to compare with."""
    caption = f"{name}\n{samples.nfc:.4g} full"
    if full is None or samples is full:
        return caption
    return f"{caption}, {float(psnr(samples.images, full.images).mean()):.1f} dB"
