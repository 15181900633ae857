"""`relcache bench speed`: the time of methods and peers; for pipelines also their quality."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from relcache.bench import files
from relcache.bench.comparison.arguments import call_options, conditions_for
from relcache.bench.comparison.entries import choose
from relcache.bench.comparison.prepare import full_steps_from_text, read_prompts
from relcache.bench.pages.illustrations import draw_tradeoff
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import TriedThresholds, calibration_seeds, with_any_budget
from relcache.bench.sampling.gallery import slug
from relcache.bench.sampling.pipelines import load_pipeline, precision_of, usable_device
from relcache.bench.speed import counting, speed, tradeoff
from relcache.bench.speed.contestants import NamedMethod, methods_at
from relcache.bench.speed.peers import PEERS
from relcache.bench.speed.stopwatch import keep_memory
from relcache.bench.speed.subjects import SUBJECTS, Course, course_of, device_name, subject_of
from relcache.bench.speed.trial import Trial
from relcache.cli import options
from relcache.cli.terminal import console, plain_errors, progress_bar, relief_of, say, terminal_table
from relcache.methods import method_from_config
from relcache_models import names as shipped_models

METHODS = "fora,taylorseer-1,taylorseer-2,rfc-1,rfc-2"


def time_methods(
    model: Annotated[str, typer.Option(help="dit, flux or hunyuan with random weights; or a pipeline.")] = "dit",
    methods: Annotated[str, typer.Option(help="As in the other benchmarks, without budgets.")] = METHODS,
    granularity: Annotated[str, typer.Option(help="Comma-separated: module, block, stack.")] = "module,block,stack",
    nfc: Annotated[str, typer.Option(help="Comma-separated numbers of full steps.")] = "14",
    steps: options.Steps = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each method; one more warms up.")] = 3,
    blocks: Annotated[str | None, typer.Option(help="Random weights: blocks of each kind, 4 or 2,4; or all.")] = None,
    size: options.Size = None,
    frames: options.Frames = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size; 8 for dit and pipelines, else 1.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Add caches of diffusers and cache-dit.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, help="Pipelines: pictures or clips per method; 8.")] = None,
    seed: options.Seed = 0,
    prompts: Annotated[Path | None, typer.Option(help="Pipelines: file of prompts, one a line, or CSV.")] = None,
    guidance: options.Guidance = None,
    option: options.Option = None,
    calibration_samples: options.CalibrationSamples = 4,
    compiled: Annotated[bool, typer.Option("--compile", help="Random weights: use torch.compile.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Count bytes and FLOPs of a step, without timing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for table.json, table.md and the figure.")] = None,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
) -> None:
    """Time the steps of every method against the ideal, the full steps alone.

    Methods run in turn in one process. With random weights an error budget measures its signal but takes full steps at
    the fixed interval. With a pipeline each threshold is found first, and PSNR and SSIM to full compute are measured.
    By default a model with random weights has few blocks on a CPU, and all on a GPU. The option --peers adds
    TaylorSeer and FirstBlockCache of diffusers and DBCache of cache-dit.
    """
    with plain_errors(relief_of(batch or 1, device, dtype)):
        named = methods_at(choose(methods), granularity.split(","))
        targets = full_steps_from_text(nfc, steps)
        is_pipeline = model not in SUBJECTS and (model in shipped_models() or "/" in model or Path(model).is_dir())
        for_pipelines = {"--samples": samples, "--prompts": prompts, "--guidance": guidance, "--option": option or None}
        for_random = {"--blocks": blocks, "--count": count or None, "--compile": compiled or None}
        for name, value in (for_random if is_pipeline else for_pipelines).items():
            if value is not None:
                kind = "is a pipeline" if is_pipeline else "has random weights"
                raise ValueError(f"{name} has no meaning with {model}, which {kind}")
        if compiled and peers:
            raise ValueError("--compile does not work with the hooks of --peers: leave one out")
        device = usable_device(device)
        precision_of(dtype)
        if out is not None:
            files.check_folder(out)
        kept = ", freed memory kept" if device == "cpu" and not count and keep_memory() else ""
        if is_pipeline:
            sampler = Sampler(
                load_pipeline(model, device, dtype), steps, batch or 8,
                call_options(model, guidance, size, frames, option or []),
            )  # fmt: skip
            texts = None if prompts is None else read_prompts(prompts)
            trial, calibration = (
                Trial(sampler, seeds, conditions_for(model, texts, seeds))
                for seeds in ([seed + index for index in range(samples or 8)], calibration_seeds(calibration_samples))
            )
            name = slug(Path(model).name)
            about = f"{name}: {len(trial.seeds)} samples, {steps} steps, batch {sampler.batch}, {dtype}, "
            about += device_name(device) + kept
            rows = _race_pipeline(trial, calibration, named, targets, rounds, peers)
            _tabulate(rows, about, tradeoff.COLUMNS, out, f"speed-{name}")
            if out is not None:
                for path in draw_tradeoff(out / f"speed-{name}"):
                    say(f"Written to {path}")
            return
        if count:
            subject = subject_of(model, size, frames, batch)
            about = f"{model} with all its blocks, {subject.size}, {dtype}"
            counted = [(name, method_from_config(with_any_budget(config))) for name, config in named]
            _tabulate(counting.table(subject, counted, dtype, device), about, counting.COLUMNS, out, f"count-{model}")
            return
        course = course_of(model, device, dtype, steps, _block_numbers(blocks), size, frames, batch, compiled)
        folder = f"speed-{model}-compiled" if compiled else f"speed-{model}"
        _tabulate(_race(course, named, targets, rounds, peers), course.about + kept, speed.COLUMNS, out, folder)


def _race(
    course: Course, named: Sequence[NamedMethod], targets: Sequence[int], rounds: int, peers: bool
) -> list[dict[str, Any]]:
    """Race on random weights at each number of full steps in turn."""
    chosen = PEERS if peers else ()
    known: dict[str, TriedThresholds] = {}
    rows: list[dict[str, Any]] = []
    with progress_bar() as bar:
        work = bar.add_task("warming up", total=(rounds + 1) * len(targets) * (len(named) + len(chosen)))
        for target in targets:
            contestants = speed.contestants_for(
                course, named, chosen, target, known, lambda name: bar.update(work, description=name)
            )
            raced = speed.race(
                course, contestants, rounds, lambda name: bar.update(work, description=name, advance=1), target
            )
            rows += raced[1:] if rows else raced
    return rows


def _race_pipeline(
    trial: Trial, calibration: Trial, named: Sequence[NamedMethod], targets: Sequence[int], rounds: int, peers: bool
) -> list[dict[str, Any]]:
    """Find every budget, then race on a pipeline with a heat for each number of full steps."""
    chosen = PEERS if peers else ()
    tradeoff.check(trial, chosen)
    known: dict[str, TriedThresholds] = {}
    with progress_bar() as bar:
        total = tradeoff.runs_of(len(targets), len(named) + len(chosen), rounds)
        work = bar.add_task("loading", total=total)
        heats = {
            target: tradeoff.heat_at(
                target, named, chosen, calibration, known, lambda name: bar.update(work, description=name)
            )
            for target in targets
        }
        return tradeoff.race_pipeline(trial, heats, rounds, lambda name: bar.update(work, description=name, advance=1))


def _tabulate(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    columns: Sequence[tuple[str, str, str]],
    out: Path | None,
    name: str,
) -> None:
    """Print a table of columns (heading, key in a row, format), and write it into the folder `out` unless it is None.

    The printed table leaves out the spread of the times and the best peer's name, which do not fit.
    """
    short = [column for column in columns if not column[1].endswith(("_least", "_most", "best_peer"))]
    console.print(terminal_table(rows, title, short))
    if out is not None:
        written = files.write_or_elsewhere(out, lambda folder: speed.write_table(folder / name, rows, title, columns))
        for path in written:
            say(f"Written to {path}")


def _block_numbers(text: str | None) -> list[int] | None:
    """Return the numbers of blocks: [] for all, None for the default."""
    if text is None or text == "all":
        return None if text is None else []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ValueError(f"--blocks takes all, or numbers such as 4 or 2,4; got {text!r}")
    return [int(number) for number in text.split(",")]
