"""The command line: reads options, calls the benchmarks, prints. Thin."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from relcache import __version__
from relcache.bench import files
from relcache.bench.calibration import calibrate as find_threshold
from relcache.bench.demo import WARMUP, Demo, Settings, choose, targets_for
from relcache.bench.pipelines import DEFAULT_MODEL, class_numbers, load_pipeline, number_of_classes
from relcache.bench.sampling import Sampler
from relcache.figures.sheet import Row, draw_sheet
from relcache.methods import Method, config_from_text, method_from_config, method_from_text
from relcache.models import SPECS, UNSUPPORTED, describe, streams

app = typer.Typer(
    help="Diffusion transformers sample faster by Relational Feature Caching.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)

Model = Annotated[str, typer.Option(help="A shipped model, a folder in diffusers' format, or a hub id.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is none.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first sample; the others count on from it.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples per batch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


@contextmanager
def plain_errors(resumes: bool = False) -> Iterator[None]:
    """Errors that a user can mend, as a line instead of a traceback; exit status 1, and 130 for an interrupt."""
    try:
        yield
    except (ValueError, FileNotFoundError, OSError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except torch.OutOfMemoryError as error:
        errors.print("[bold red]error:[/] out of memory; a smaller --batch or --dtype bfloat16 needs less")
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
    samples: Annotated[int, typer.Option(help="Pictures per method.")] = 16,
    steps: Steps = 50,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for table, sheets and pictures.")] = Path("relcache-demo"),
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated: fora, taylorseer-1, rfc (all orders), all, …")
    ] = None,
    nfc: Annotated[str | None, typer.Option(help="Comma-separated numbers of full steps; of 50 steps 14,8,7.")] = None,
    guidance: Guidance = 1.5,
    batch: Batch = 32,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Samples that thresholds are found on.")] = 6,
    device: Device = "auto",
) -> None:
    """Sample the shipped model with every method at equal cost and compare with full compute.

    Prints the table and writes table.json, table.md and one sheet per number of full steps. Run again with the same
    options, it goes on from the pictures that are there.
    """
    with plain_errors(resumes=True):
        entries = choose(methods)
        targets = _numbers(nfc, steps) if nfc else targets_for(steps)
        out.mkdir(parents=True, exist_ok=True)
        settings = Settings(DEFAULT_MODEL, samples, steps, guidance, seed, batch, calibration_samples)
        sampler = Sampler(load_pipeline(DEFAULT_MODEL, device), steps, guidance, batch)
        with progress_bar() as bar:
            # one task that is renamed, and the total as it becomes known
            whole = (1 + len(entries) * len(targets)) * samples
            task = bar.add_task("loading", total=whole)

            def announce(text: str, count: int) -> None:
                bar.update(task, description=text)

            work = Demo(sampler, settings, out, announce, lambda count: bar.advance(task, count))
            rows = work.run(entries, targets)
            bar.update(task, description="done", total=bar.tasks[0].completed)
        console.print(rich_table(rows, f"{samples} samples, {steps} steps, guidance {guidance:g}"))
        console.print(
            "PSNR, SSIM and the Fréchet distance (of the shipped classifier's features; not FID) are against full "
            "compute; class is the share of pictures in which the classifier sees the class that was asked for; "
            "GFLOPs are per picture, seconds for all pictures on this machine."
        )
        console.print(f"Written to {out}: table.json, table.md, {', '.join(f'sheet-nfc{n}.png' for n in targets)}")


@app.command()
def sample(
    classes: Annotated[str, typer.Option(help="Comma-separated class names or numbers.")] = "0,1,2,3,4,5,6,7,8,9",
    method: Annotated[str, typer.Option(help="Such as rfc:order=2,threshold=0.12 or fora:interval=4 or full.")] = "rfc",
    nfc: Annotated[int | None, typer.Option(help="Find the threshold for this number of full steps first.")] = None,
    model: Model = DEFAULT_MODEL,
    steps: Steps = 50,
    guidance: Guidance = 1.5,
    seed: Seed = 0,
    batch: Batch = 32,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("relcache-samples"),
    device: Device = "auto",
    dtype: DType = "float32",
) -> None:
    """Make one picture per class with one method, and print the report."""
    with plain_errors():
        chosen = _with_any_threshold(method) if nfc is not None else method_from_text(method)
        pipeline = load_pipeline(model, device, dtype)
        labels = class_numbers(pipeline, classes.split(","))
        sampler = Sampler(pipeline, steps, guidance, batch)
        if nfc is not None:
            threshold = find_threshold(sampler, chosen, nfc, classes=number_of_classes(pipeline))
            chosen = chosen.with_threshold(threshold)
        with progress_bar() as bar:
            task = bar.add_task(chosen.name, total=len(labels))
            result = sampler.run(
                chosen, [seed + index for index in range(len(labels))], labels, lambda n: bar.advance(task, n)
            )
        names = {number: name for name, number in pipeline.labels.items()}
        for index, (image, label) in enumerate(zip(result.images.numpy(), labels, strict=True)):
            name = names.get(label, str(label)).replace(" ", "-").replace("/", "-")
            path = out / f"{index:03d}-{name}-seed{seed + index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)
        sheet = draw_sheet([Row(chosen.name, result.images.numpy())], f"{result.nfc:.4g} of {steps} steps in full")
        files.write_whole(out / "sheet.png", sheet)
        files.write_json(out / "report.json", [report.to_dict() for report in result.reports])
        for report in result.reports:
            console.print(str(report), highlight=False, soft_wrap=True, markup=False)
        console.print(f"{len(labels)} pictures in {result.seconds:.1f} s, written to {out}")


@app.command()
def calibrate(
    nfc: Annotated[float, typer.Option(help="Mean number of full steps that is wanted.")],
    method: Annotated[str, typer.Option(help="A method with a threshold: rfc:order=2, rcs:order=1, …")] = "rfc",
    model: Model = DEFAULT_MODEL,
    steps: Steps = 50,
    guidance: Guidance = 1.5,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples.")] = 16,
    batch: Batch = 16,
    device: Device = "auto",
    dtype: DType = "float32",
) -> None:
    """Print the threshold at which a method has a given mean number of full steps."""
    with plain_errors():
        chosen = _with_any_threshold(method)
        pipeline = load_pipeline(model, device, dtype)
        sampler = Sampler(pipeline, steps, guidance, batch)
        found: list[tuple[float, float]] = []

        def tell(threshold: float, count: float) -> None:
            found.append((threshold, count))
            errors.print(f"threshold {threshold:<8g} {count:g} full steps")

        threshold = find_threshold(sampler, chosen, nfc, samples, number_of_classes(pipeline), tell=tell)
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
    if as_json:
        rows = [
            {"class": spec.class_name, "units": describe(spec), "streams": streams(spec), "pipelines": spec.pipelines}
            for spec in specs
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table(header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    for heading in ("class", "units per block", "streams", "tested"):
        table.add_column(heading, overflow="fold")
    for spec in specs:
        tested = ["small model", *spec.pipelines]
        units = "\n".join(f"{stack}: {', '.join(parts)}" for stack, parts in describe(spec).items())
        table.add_row(spec.class_name, escape(units), str(streams(spec)), ", ".join(tested))
    console.print(table)
    console.print(f"{len(specs)} classes", highlight=False)
    for class_name, reason in UNSUPPORTED.items():
        if name.lower() in class_name.lower():
            console.print(f"not cached: {class_name}: {reason}", highlight=False)


@app.command()
def version() -> None:
    """Print the versions of relcache, torch and Python."""
    console.print(
        f"relcache {__version__}, torch {torch.__version__}, Python {platform.python_version()}", highlight=False
    )


def rich_table(rows: list[dict[str, Any]], title: str) -> Table:
    """The demonstration's rows as a table for the terminal."""
    table = Table(title=title, header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    columns = {
        "full": ("nfc", ".4g"),
        "τ": ("threshold", ".3g"),
        "GFLOPs": ("gflops", ".1f"),
        "s": ("seconds", ".1f"),
        "PSNR": ("psnr", ".2f"),
        "SSIM": ("ssim", ".4f"),
        "class": ("accuracy", ".3f"),
        "Fréchet": ("frechet", ".3f"),
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


def _with_any_threshold(text: str) -> Method:
    """The method that `text` names, with a threshold to begin a search at where it gives none."""
    config = config_from_text(text)
    if config["method"].lower() in ("rfc", "rcs"):
        config.setdefault("threshold", 0.1)
        config.setdefault("order", 2)
    return method_from_config(config)
