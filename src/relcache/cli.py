"""The command line: reads options, calls the benchmarks, prints. Thin."""

from __future__ import annotations

import difflib
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from relcache.bench.analysis import analyze as record
from relcache.bench.asked import asked_of, call_options, conditions, for_calibration
from relcache.bench.benchmarks import NAMES, SMALL, Benchmark, Column, benchmark_of
from relcache.bench.calibration import at_budget, calibration_seeds, interval_for, to_begin_with, with_any_budget
from relcache.bench.calibration import calibrate as find_threshold
from relcache.bench.counting import COLUMNS as COUNTED
from relcache.bench.counting import table
from relcache.bench.entries import choose, named_config, split_methods
from relcache.bench.external import make as make_environment
from relcache.bench.gallery import slug, write_each, write_sheets
from relcache.bench.illustrations import illustrate, summary
from relcache.bench.page import write_page
from relcache.bench.pipelines import DEFAULT_MODEL, OFFLOADS, is_out_of_memory, load_pipeline, usable_device
from relcache.bench.pool import is_here, make_pool
from relcache.bench.prepare import Asked, is_protocol, prepare, read_prompts, tasks, with_measure
from relcache.bench.results import write
from relcache.bench.sampling import Sampler, Samples, smaller
from relcache.bench.speed import COLUMNS as TIMED
from relcache.bench.speed import contestants_for, course_of, methods_at, race, subject_of
from relcache.bench.speed import write as write_speed
from relcache.bench.summaries import against
from relcache.figures.sheet import Row
from relcache.methods import config_from_text, method_from_config, named_granularity
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
Methods = Annotated[
    str | None,
    typer.Option(help="Comma-separated: fora, rfc-1, rfc (all orders), rfc:order=2, all; or a TOML or YAML file."),
]
Targets = Annotated[str | None, typer.Option(help="Comma-separated numbers of full steps; of 50 steps 14,8,7.")]
CalibrationSamples = Annotated[int, typer.Option(min=1, help="Samples that thresholds are found on.")]
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
    with plain_errors(_relief(batch), resumes=True):
        asked = Asked(
            methods=methods, nfc=nfc, samples=samples, steps=steps, seeds=str(seed), guidance=guidance, batch=batch,
            calibration_samples=calibration_samples, device=usable_device(device),
        )  # fmt: skip
        for name in tasks(task):
            _compare(SMALL[name], asked, out / name)


SPEED_METHODS = "fora,taylorseer-1,taylorseer-2,rfc-1,rfc-2"
bench_app = typer.Typer(
    help="The paper's benchmarks: every method from the same seeds, measured, in the paper's columns; and the speed.",
    no_args_is_help=True,
)
app.add_typer(bench_app, name="bench")


def _quality_command(benchmark: str) -> Callable[..., None]:
    """The command of one of the paper's benchmarks."""

    def command(
        model: Annotated[str | None, typer.Option(help="A shipped model, a folder, or a hub id.")] = None,
        preset: Annotated[str, typer.Option(help="paper: the published protocol; small: the shipped model.")] = "paper",
        methods: Methods = None,
        nfc: Targets = None,
        samples: Annotated[int | None, typer.Option(help="Pictures or clips per method.")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
        seeds: Annotated[str, typer.Option(help="The first seed, or one for each sample: 0-9,20,30-39.")] = "0",
        prompts: Annotated[Path | None, typer.Option(help="File with a prompt on each line, or a CSV file.")] = None,
        guidance: Guidance = None,
        size: Size = None,
        frames: Frames = None,
        option: Option = None,
        batch: Annotated[
            int | None, typer.Option(min=1, help="Samples per batch; 32, but 1 of FLUX and HunyuanVideo.")
        ] = None,
        calibration_samples: CalibrationSamples = 6,
        reference: Annotated[Path | None, typer.Option(help="ADM's reference batch (.npz), for FID and sFID.")] = None,
        inception: Annotated[Path | None, typer.Option(help="File with the Inception weights.")] = None,
        alexnet: Annotated[Path | None, typer.Option(help="File with AlexNet's weights, for LPIPS.")] = None,
        clip: Annotated[str | None, typer.Option(help="Folder or hub id of the CLIP model for the CLIP score.")] = None,
        workers: Annotated[str, typer.Option(help="A number, or the address of a Ray cluster.")] = "1",
        threads: Annotated[int, typer.Option(min=0, help="CPU threads of each worker; 0 leaves torch's number.")] = 0,
        html: Annotated[bool, typer.Option("--html", help="Also write all into one page, report.html.")] = False,
        out: Annotated[Path, typer.Option(help="Folder; each benchmark has its own in it.")] = Path("relcache-bench"),
        device: Device = "auto",
        dtype: DType = "float32",
        offload: Offload = "none",
    ) -> None:
        relief: list[str] = []
        with plain_errors(relief, resumes=True):
            chosen = benchmark_of(benchmark, preset)
            relief += _relief(batch or chosen.batch, device, dtype, offload)
            asked = Asked(
                model=model, methods=methods, nfc=nfc, samples=samples, steps=steps, seeds=seeds, guidance=guidance,
                batch=batch, calibration_samples=calibration_samples,
                device=usable_device(device) if is_here(workers) else device, dtype=dtype, offload=offload,
                prompts=None if prompts is None else read_prompts(prompts), threads=threads,
                options=call_options(None, None, size, frames, option or []),
            )  # fmt: skip
            columns = dict(chosen.columns)
            if "inception" in chosen.measures:
                chosen = with_measure(
                    chosen, "inception", weights=None if inception is None else str(inception.resolve())
                )
                columns = {**against(reference, inception, usable_device(device)), **columns}
            elif reference is not None or inception is not None:
                raise ValueError("--reference and --inception are of class-conditional with the paper's preset")
            for name, key, given in (("lpips", "weights", alexnet), ("clip", "model", clip)):
                if given is not None and name not in chosen.measures:
                    raise ValueError(f"{benchmark} of the preset {preset} does not measure {name}")
                if given is not None:
                    chosen = with_measure(
                        chosen, name, **{key: str(given.resolve() if isinstance(given, Path) else given)}
                    )
            protocol = benchmark if preset == "paper" and is_protocol(chosen, asked) else ""
            _compare(chosen, asked, out / benchmark, workers, columns, protocol)
            if html:
                console.print(f"Written to {write_page(out / benchmark)}")

    command.__doc__ = f"""Run the paper's {benchmark} benchmark: methods from the same seeds, in the paper's columns.

    Run again with the same options, it goes on from what is there, with any number of workers.
    """
    return command


for _name in NAMES:
    bench_app.command(_name)(_quality_command(_name))


@bench_app.command()
def speed(
    model: Annotated[str, typer.Option(help="dit, flux or hunyuan, with random weights.")] = "dit",
    methods: Annotated[str, typer.Option(help="As of the other benchmarks, without budgets.")] = SPEED_METHODS,
    granularity: Annotated[str, typer.Option(help="Comma-separated: module, block, stack.")] = "module,block,stack",
    nfc: Annotated[int, typer.Option(min=3, help="Full steps.")] = 14,
    steps: Steps = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each method; one more warms up.")] = 3,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks of each kind, 4 or 2,4; or all. By default few on a CPU, all on a GPU.")
    ] = None,
    size: Size = None,
    frames: Frames = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a call; by default 8 of dit, else 1.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Also diffusers' TaylorSeer, on the same modules.")] = False,
    count: Annotated[
        bool, typer.Option("--count", help="Time nothing: count what a step at full size moves and computes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for table.json and table.md.")] = None,
    device: Device = "auto",
    dtype: DType = "float32",
) -> None:
    """Time full and cached steps of every method against the ideal: the full steps alone.

    Methods run in turn in one process. An error budget measures its signal, and is held to the fixed interval.
    """
    with plain_errors(_relief(batch or 1, device, dtype)):
        named = methods_at(choose(methods), granularity.split(","))
        if count:
            subject = subject_of(model, size, frames, batch)
            about = f"{model} with all its blocks, {subject.size}, {dtype}"
            _tabulate(table(subject, named, dtype, usable_device(device)), about, COUNTED, out, f"count-{model}")
            return
        course = course_of(model, usable_device(device), dtype, steps, _blocks(blocks), size, frames, batch)
        chosen = contestants_for(course.spec, named, interval_for(nfc, steps), peers)
        with progress_bar() as bar:
            work = bar.add_task("warming up", total=(rounds + 1) * len(chosen))

            def tell(name: str) -> None:
                bar.update(work, description=name, advance=1)

            rows = race(course, chosen, rounds, tell)
        _tabulate(rows, course.about, TIMED, out, f"speed-{model}")


def _tabulate(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    columns: Sequence[tuple[str, str, str]],
    out: Path | None,
    name: str,
) -> None:
    """Print a table of columns (heading, name in a row, format), and write it where a folder is given."""
    shown = Table(title=title, header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    for heading, _, _ in columns:
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        shown.add_row(*("–" if row[name] is None else format(row[name], form) for _, name, form in columns))
    console.print(shown)
    if out is not None:
        for path in write_speed(out / name, rows, title, columns):
            console.print(f"Written to {path}")


def _blocks(text: str | None) -> list[int] | None:
    """Numbers of blocks, [] for all of them, None where nothing is said."""
    if text is None or text == "all":
        return None if text is None else []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ValueError(f"--blocks takes numbers, or all: 4, or 2,4; got {text!r}")
    return [int(number) for number in text.split(",")]


def _compare(
    benchmark: Benchmark,
    asked: Asked,
    out: Path,
    workers: str = "1",
    columns: Mapping[str, Column] | None = None,
    protocol: str = "",
) -> None:
    """Run a comparison with a progress bar, and print its table."""
    columns = benchmark.columns if columns is None else columns
    with progress_bar() as bar:
        work = bar.add_task("loading", total=None)
        comparison = prepare(
            benchmark, asked, out.resolve(),
            announce=lambda text: bar.update(work, description=text),
            advance=lambda count: bar.advance(work, count),
            warn=lambda text: errors.print(text, highlight=False, markup=False),
        )  # fmt: skip
        bar.update(work, total=comparison.size)
        with make_pool(comparison.settings.setup, workers) as pool:
            comparison.run(pool)
        bar.update(work, description="measuring")
        rows, written = write(comparison, columns, protocol)
        bar.update(work, description="done")
    setup = comparison.settings.setup
    about = (
        f"{setup.model}: {comparison.settings.samples} samples, {setup.steps} steps, "
        f"guidance {setup.options['guidance_scale']:g}"
    )
    console.print(rich_table(rows, about, columns))
    console.print(
        f"PSNR and SSIM are against full compute; {benchmark.meaning}. FLOPs and seconds are per sample, seconds on "
        "this machine."
    )
    console.print(f"Written to {out}: {', '.join(path.name for path in written)}")


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
    with plain_errors(_relief(batch, device, dtype, offload), resumes=True):
        model = model or ("small-flux" if prompt else DEFAULT_MODEL)
        entries = choose(methods)
        seeds = [seed + index for index in range(samples)]
        with progress_bar() as bar:
            task = bar.add_task("full compute", total=samples)
            known = record(
                model, entries, asked_of(model, prompt, seeds), seeds, out, interval=interval, steps=steps, batch=batch,
                options=call_options(model, guidance, size, frames, option or []), device=usable_device(device),
                dtype=dtype, offload=offload, granularity=named_granularity(granularity),
                advance=lambda count: bar.advance(task, count),
            )  # fmt: skip
            written = illustrate(out, module or ())
        found = summary(known)
        for key, value in found.items():
            if isinstance(value, float):
                console.print(f"{key}: {value:.3g}", highlight=False)
        for name, value in found["relative L1 error of the output"].items():
            console.print(f"relative L1 error of the output, {name}: {value:.3g}", highlight=False)
        console.print(f"Written to {out}: {', '.join(path.name for path in written)}", highlight=False)


@app.command()
def figures(
    folder: Annotated[Path, typer.Argument(help="Folder that bench, demo or analyze has written.")],
    module: Annotated[
        list[str] | None, typer.Option(help="A module of an analysis to show; give it again for more.")
    ] = None,
) -> None:
    """Draw figures and sheets again from saved results."""
    with plain_errors([]):
        for path in illustrate(folder, module or ()):
            console.print(str(path), highlight=False, soft_wrap=True)


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


def rich_table(rows: list[dict[str, Any]], title: str, columns: Mapping[str, Column]) -> Table:
    """A comparison's rows as a table for the terminal."""
    table = Table(title=title, header_style="bold", box=None, padding=(0, 1), pad_edge=False)
    most = max((row["tflops"] for row in rows if row["tflops"] is not None), default=0)
    unit, scale = ("TFLOPs", 1) if most >= 1 else ("GFLOPs", 1e3)
    shown = {
        "full": ("nfc", ".4g"),
        "τ": ("threshold", ".3g"),
        unit: ("flops", ".1f"),
        "s": ("seconds", ".3g"),
        **{column.heading: (name, column.form) for name, column in columns.items() if not column.detail},
    }
    table.add_column("method", no_wrap=True)
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    past = None
    for row in rows:
        if past is not None and row["nfc_target"] != past:
            table.add_section()
        past = row["nfc_target"]
        values = {**row, "flops": None if row["tflops"] is None else row["tflops"] * scale}
        cells = ("–" if values[key] is None else format(values[key], form) for key, form in shown.values())
        table.add_row(row["method"], *cells)
    return table


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
