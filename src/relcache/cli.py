"""The command line: reads options, calls the benchmarks, prints. Thin."""

from __future__ import annotations

import difflib
import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from relcache import __version__
from relcache.bench import files
from relcache.bench.asked import call_options, conditions, for_calibration, named_config, split_methods
from relcache.bench.calibration import WARMUP, at_budget, calibration_seeds, to_begin_with, with_any_budget
from relcache.bench.calibration import calibrate as find_threshold
from relcache.bench.demo import Demo, Entry, Settings, choose, targets_for
from relcache.bench.gallery import slug, write_each, write_sheets
from relcache.bench.pipelines import DEFAULT_MODEL, OFFLOADS, is_out_of_memory, load_pipeline
from relcache.bench.sampling import Sampler, Samples, smaller
from relcache.bench.tasks import TASKS
from relcache.figures.sheet import Row
from relcache.methods import config_from_text, method_from_config
from relcache.metrics.pair import psnr
from relcache.models import SPECS, UNSUPPORTED, describe, streams

app = typer.Typer(
    help="Diffusion transformers sample faster by Relational Feature Caching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)

Model = Annotated[
    str | None,
    typer.Option(help="A shipped model, a folder in diffusers' format, or a hub id; by default a shipped one."),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; by default the model's own.")]
Size = Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels, or one number for both.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")]
Option = Annotated[
    list[str] | None,
    typer.Option(help="A further argument of the pipeline's call, as name=value; give it again for more."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first sample; the others count on from it.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
Offload = Annotated[str, typer.Option(help="none, model, group or sequential: less GPU memory, and slower.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


@contextmanager
def plain_errors(relief: Sequence[str], resumes: bool = False) -> Iterator[None]:
    """Errors that a user can mend, as a line instead of a traceback; exit status 1, and 130 for an interrupt.

    `relief` are the options of which each would need less memory; it may grow while the command runs.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = f"; it would help to give {', or '.join(relief)}" if relief else ""
        errors.print(f"[bold red]error:[/] out of memory{hint}", soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        more = "; methods that were finished are kept, and the same command goes on from there" if resumes else ""
        errors.print(f"interrupted{more}")
        raise typer.Exit(130) from error


def progress_bar() -> Progress:
    """The progress bar of every command."""
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
    )


@app.command()
def demo(
    task: Annotated[str, typer.Option(help="class, text, video, or all of them.")] = "class",
    samples: Annotated[int, typer.Option(help="Pictures or clips per method.")] = 16,
    steps: Steps = 50,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder; each task has one of its own in it.")] = Path("relcache-demo"),
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated: fora, taylorseer-1, rfc (all orders), all, …")
    ] = None,
    nfc: Annotated[str | None, typer.Option(help="Comma-separated numbers of full steps; of 50 steps 14,8,7.")] = None,
    guidance: Guidance = None,
    batch: Batch = 32,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Samples that thresholds are found on.")] = 6,
    device: Device = "auto",
) -> None:
    """Sample the shipped models with every method at equal cost and compare with full compute.

    class: a class-conditional DiT; text: pictures by FLUX's architecture; video: clips by HunyuanVideo's. Prints the
    table and writes table.json, table.md and sheets. Run again with the same options, it goes on from what is there.
    """
    with plain_errors(_relief(batch), resumes=True):
        entries = choose(methods)
        targets = _numbers(nfc, steps) if nfc else targets_for(steps)
        every = [
            Settings(name, samples, steps, guidance, seed, batch, calibration_samples)
            for name in (TASKS if task == "all" else [task])
        ]
        for settings in every:
            _demonstrate(settings, out / settings.task, device, entries, targets)


def _demonstrate(settings: Settings, out: Path, device: str, entries: list[Entry], targets: list[int]) -> None:
    """Run the demonstration of one task, with a progress bar, and print its table."""
    task = TASKS[settings.task]
    out.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(task.model, device)
    with progress_bar() as bar:
        # one bar that is renamed, and the total as it becomes known
        work = bar.add_task("loading", total=(1 + len(entries) * len(targets)) * settings.samples)
        demonstration = Demo(
            pipeline, settings, out,
            announce=lambda text: bar.update(work, description=text),
            advance=lambda count: bar.advance(work, count),
        )  # fmt: skip
        rows = demonstration.run(entries, targets)
        bar.update(work, description="done", total=bar.tasks[0].completed)
    about = f"{task.model}: {settings.samples} samples, {settings.steps} steps, guidance {settings.guidance:g}"
    console.print(rich_table(rows, about, task.columns))
    console.print(
        f"PSNR and SSIM are against full compute; {task.meaning}. GFLOPs are per sample, seconds for all samples on "
        "this machine."
    )
    console.print(
        f"Written to {out}: {', '.join(['table.json', 'table.md', *(p.name for p in demonstration.written)])}"
    )


@app.command()
def sample(
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt; give the option again for more pictures or clips.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated class names or numbers, for class-conditional models.")
    ] = None,
    method: Annotated[str, typer.Option(help="Such as rfc:order=2,threshold=0.12 or fora:interval=4 or full.")] = "rfc",
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
    relief = _relief(batch, device, dtype, offload)
    with plain_errors(relief):
        model = model or ("small-flux" if prompt else DEFAULT_MODEL)
        given = [text.strip() for text in split_methods(method if compare is None else compare)]
        if not given or (compare is None and len(given) > 1):
            asked_for = repr(method) if compare is None else repr(compare)
            raise ValueError(f"--method takes one method, --compare one or more; got {asked_for}")
        configs = {text: named_config(text) for text in given}
        for config in configs.values():  # a mistake shows before anything is loaded
            method_from_config(config if nfc is None else with_any_budget(config))
        options = call_options(model, guidance, size, frames, option or [])
        pipeline = load_pipeline(model, device, dtype, offload)
        relief += smaller(pipeline)
        sampler = Sampler(pipeline, steps, batch, options)
        asked, names = conditions(pipeline, prompt, classes)
        seeds = [seed + index for index in range(len(asked))]
        made: dict[str, Samples] = {}
        with progress_bar() as bar:
            task = bar.add_task("loading", total=len(configs) * len(seeds))
            labels: list[str] = []
            for text, config in configs.items():
                bar.update(task, description=text)
                if nfc is None:
                    chosen = method_from_config(config)
                else:
                    calibration = for_calibration(pipeline, asked, min(8, len(asked)))
                    chosen = at_budget(config, nfc, sampler, calibration_seeds(len(calibration)), calibration)
                made[text] = sampler.run(chosen, seeds, asked, lambda count: bar.advance(task, count))
                label = f"-{slug(text)}" if compare else ""
                while label in labels:  # two texts may have one slug
                    label += "-again"
                labels.append(label)
                stems = [f"{i:03d}-{name}-seed{s}{label}" for i, (name, s) in enumerate(zip(names, seeds, strict=True))]
                write_each(out, made[text].images.numpy(), stems)
        rows = [
            Row(_caption(text, samples, made.get("full")), samples.images.numpy()) for text, samples in made.items()
        ]
        captions = [str(prompt) for prompt in asked] if sampler.condition == "prompt" else []
        write_sheets(out, rows, f"{model}, {steps} steps", captions)
        reports = [report.to_dict() for samples in made.values() for report in samples.reports]
        files.write_json(out / "report.json", reports)
        for text, samples in made.items():
            for report in samples.reports:
                console.print(str(report), highlight=False, soft_wrap=True, markup=False)
            console.print(f"{text}: {len(seeds)} in {samples.seconds:.1f} s", highlight=False, markup=False)
        console.print(f"Written to {out}")


@app.command()
def calibrate(
    nfc: Annotated[float, typer.Option(help="Mean number of full steps that is wanted.")],
    method: Annotated[str, typer.Option(help="A method with a threshold: rfc:order=2, rcs:order=1, …")] = "rfc",
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
    batch: Batch = 16,
    device: Device = "auto",
    dtype: DType = "float32",
    offload: Offload = "none",
) -> None:
    """Print the threshold at which a method has a given mean number of full steps."""
    relief = _relief(batch, device, dtype, offload)
    with plain_errors(relief):
        model = model or ("small-flux" if prompt else DEFAULT_MODEL)
        chosen = method_from_config(to_begin_with(config_from_text(method)))
        options = call_options(model, guidance, size, frames, option or [])
        pipeline = load_pipeline(model, device, dtype, offload)
        relief += smaller(pipeline)
        sampler = Sampler(pipeline, steps, batch, options)
        seeds = calibration_seeds(samples)
        asked = for_calibration(pipeline, conditions(pipeline, prompt, None)[0], samples)
        found: list[tuple[float, float]] = []

        def tell(threshold: float, count: float) -> None:
            found.append((threshold, count))
            errors.print(f"threshold {threshold:<8g} {count:g} full steps")

        threshold = find_threshold(sampler, chosen, nfc, seeds, asked, tell=tell)
        reached = dict(found).get(threshold)
        if reached is not None and reached != nfc:
            errors.print(f"no threshold gave {nfc:g} full steps; the nearest gives {reached:g}")
        console.print(f"{threshold:g}", highlight=False)


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="Show only classes whose name holds this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the transformers that relcache knows: what is cached in each block, and how it is tested."""
    specs = [spec for spec in SPECS if name.lower() in spec.class_name.lower()]
    unsupported = {known: reason for known, reason in UNSUPPORTED.items() if name.lower() in known.lower()}
    if not specs and not unsupported:
        known = {re.sub(r"(Video)?(Transformer|DiT).*", "", spec.class_name).lower(): spec.class_name for spec in SPECS}
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f"; the nearest are {', '.join(known[match] for match in near)}" if near else ""
        errors.print(f"[bold red]error:[/] no class's name holds {escape(repr(name))}{hint}", soft_wrap=True)
        raise typer.Exit(1)
    if as_json:
        rows = [
            {"class": spec.class_name, "units": describe(spec), "streams": streams(spec), "pipelines": spec.pipelines}
            for spec in specs
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("class", overflow="fold", ratio=3)
    table.add_column("units per block", overflow="fold", ratio=5)
    table.add_column("streams", justify="right", no_wrap=True)
    table.add_column("tested", overflow="fold", ratio=2)
    for spec in specs:
        tested = ["small model", *spec.pipelines]
        units = "\n".join(f"{stack}: {', '.join(parts)}" for stack, parts in describe(spec).items())
        table.add_row(spec.class_name, escape(units), str(streams(spec)), ", ".join(tested))
    console.print(table)
    console.print(f"{len(specs)} class{'es' * (len(specs) != 1)}", highlight=False)
    for class_name, reason in unsupported.items():
        console.print(f"not cached: {class_name}: {reason}", highlight=False)


@app.command()
def version() -> None:
    """Print the versions of relcache, torch and Python."""
    console.print(
        f"relcache {__version__}, torch {torch.__version__}, Python {platform.python_version()}", highlight=False
    )


def rich_table(rows: list[dict[str, Any]], title: str, scores: Mapping[str, str]) -> Table:
    """The demonstration's rows as a table for the terminal; `scores` are the headings of the task's own columns."""
    table = Table(title=title, header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    columns = {
        "full": ("nfc", ".4g"),
        "τ": ("threshold", ".3g"),
        "GFLOPs": ("gflops", ".1f"),
        "s": ("seconds", ".1f"),
        "PSNR": ("psnr", ".2f"),
        "SSIM": ("ssim", ".4f"),
        **{heading: (name, ".3f") for name, heading in scores.items()},
    }
    table.add_column("method", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    past = None
    for row in rows:
        if past is not None and row["nfc_target"] != past:
            table.add_section()
        past = row["nfc_target"]
        name = f"{row['method']}-{row['order']}" if row["order"] else row["method"]
        values = {**row, "gflops": row["tflops"] * 1e3}
        table.add_row(
            name, *("–" if values[key] is None else format(values[key], form) for key, form in columns.values())
        )
    return table


def _numbers(text: str, steps: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ValueError(f"--nfc takes whole numbers with commas between them, such as 14,8,7; got {text!r}")
    for number in numbers:
        if not WARMUP < number <= steps:
            raise ValueError(f"--nfc lies above the warm-up, {WARMUP}, and at most at {steps}, the steps; got {number}")
    return list(dict.fromkeys(numbers))


def _relief(batch: int, device: str = "cpu", dtype: str = "", offload: str = "") -> list[str]:
    """The options by which a run of these would need less memory, most helpful first; those it has are given."""
    relief = []
    on_gpu = torch.cuda.is_available() and not device.startswith("cpu")
    if on_gpu and offload in OFFLOADS[:-1]:
        relief.append(f"--offload {OFFLOADS[OFFLOADS.index(offload) + 1]}")
    if dtype == "float32":
        relief.append("--dtype bfloat16")
    if batch > 1:
        relief.append(f"a --batch below {batch}")
    return relief


def _caption(name: str, samples: Samples, full: Samples | None) -> str:
    """The caption of a row: the method, its full steps, and its PSNR if full compute is there to compare with."""
    caption = f"{name}\n{samples.nfc:.4g} full"
    if full is None or samples is full:
        return caption
    return f"{caption}, {float(psnr(samples.images, full.images).mean()):.1f} dB"
