"""`relcache bench speed`: the time of methods and other caches, on random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relcache.cli import options
from relcache.cli.terminal import begin, console, plain_errors, progress_bar, relief_of, say, terminal_table

if TYPE_CHECKING:
    from relcache.bench.sampling.budgets import TriedThresholds
    from relcache.bench.speed.contestants import NamedMethod
    from relcache.bench.speed.subjects import Course


METHODS = "fora,taylorseer-1,taylorseer-2,rfc-1,rfc-2"


def time_methods(
    model: Annotated[str, typer.Option(help="dit, flux or hunyuan, with random weights.")] = "dit",
    methods: Annotated[str, typer.Option(help="As in the other benchmarks, without budgets.")] = METHODS,
    granularity: Annotated[str, typer.Option(help="Comma-separated: module, block, stack.")] = "module,block,stack",
    nfc: Annotated[str, typer.Option(help="Comma-separated numbers of full steps.")] = "14",
    steps: options.Steps = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each method; one more warms up.")] = 3,
    blocks: Annotated[str | None, typer.Option(help="Blocks of each kind, 4 or 2,4; or all.")] = None,
    size: options.Size = None,
    frames: options.Frames = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size; 8 for dit, else 1.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Add caches of diffusers and cache-dit.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Count bytes and FLOPs of a step, without timing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for table.json and table.md.")] = None,
    device: options.Device = "auto",
    dtype: options.DType = "float32",
) -> None:
    """Time the steps of every method against the ideal, the full steps alone.

    Methods run in turn in one process, on random weights. An error budget measures its signal but takes full steps at
    the fixed interval. By default a model has few blocks on a CPU, and all on a GPU. The option --peers adds the caches
    of diffusers and cache-dit. For the quality of a pipeline beside its time there is relcache bench race.
    """
    with plain_errors() as relief:
        options.check_methods(methods, rivals=False)
        begin()
        from relcache.bench import files
        from relcache.bench.comparison.entries import choose
        from relcache.bench.comparison.prepare import full_steps_from_text
        from relcache.bench.sampling.budgets import with_any_budget
        from relcache.bench.sampling.pipelines import precision_of, usable_device
        from relcache.bench.sampling.stopwatch import keep_memory
        from relcache.bench.speed import counting, speed
        from relcache.bench.speed.contestants import methods_at
        from relcache.bench.speed.subjects import SUBJECTS, course_of, subject_of
        from relcache.methods import method_from_config
        from relcache_models import names as shipped_models

        relief += relief_of(batch or 1, device, dtype)
        named = methods_at(choose(methods, rivals=False), granularity.split(","))
        targets = full_steps_from_text(nfc, steps)
        if model not in SUBJECTS and (model in shipped_models() or "/" in model or Path(model).is_dir()):
            raise ValueError(f"this command times random weights; for {model}: relcache bench race --model {model}")
        if compiled and peers:
            raise ValueError("--compile does not work with the hooks of --peers: leave one out")
        device = usable_device(device)
        precision_of(dtype)
        if out is not None:
            files.check_folder(out)
        kept = ", freed memory kept" if device == "cpu" and not count and keep_memory() else ""
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
    from relcache.bench.speed import speed

    chosen = speed.timeable(course) if peers else []
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


def _tabulate(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    columns: Sequence[tuple[str, str, str]],
    out: Path | None,
    name: str,
) -> None:
    """Print a table of columns (heading, key in a row, format), and write it into the folder `out` unless it is None.

    The printed table leaves out the spread of the times, which does not fit.
    """
    from relcache.bench import files
    from relcache.bench.speed import speed

    short = [column for column in columns if not column[1].endswith(("_least", "_most"))]
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
