"""`relcache bench speed`: the times of methods and peers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from relcache.bench.calibration import interval_for
from relcache.bench.counting import COLUMNS as COUNTED
from relcache.bench.counting import table
from relcache.bench.entries import choose
from relcache.bench.pipelines import usable_device
from relcache.bench.speed import COLUMNS as TIMED
from relcache.bench.speed import contestants_for, methods_at, race, write
from relcache.bench.subjects import course_of, subject_of
from relcache.commands.options import Device, DType, Frames, Size, Steps
from relcache.commands.terminal import console, plain_errors, progress_bar, relief_of

SPEED_METHODS = "fora,taylorseer-1,taylorseer-2,rfc-1,rfc-2"


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
    with plain_errors(relief_of(batch or 1, device, dtype)):
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
        for path in write(out / name, rows, title, columns):
            console.print(f"Written to {path}")


def _blocks(text: str | None) -> list[int] | None:
    """Numbers of blocks, [] for all of them, None where nothing is said."""
    if text is None or text == "all":
        return None if text is None else []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ValueError(f"--blocks takes numbers, or all: 4, or 2,4; got {text!r}")
    return [int(number) for number in text.split(",")]
