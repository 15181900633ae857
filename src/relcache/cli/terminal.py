"""Printing of results, progress and errors."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from relcache.bench.tables import Columns, Rows, flops_unit, formatted

if TYPE_CHECKING:
    from rich.table import Table

    from relcache.bench.comparison.benchmarks import Column
    from relcache.presets import Preset


console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)


def say(text: str) -> None:
    """Print `text` unchanged: without markup, as names may hold brackets, and without line breaks in paths."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def say_error(text: str) -> None:
    """Print an error to stderr."""
    errors.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)


def verdict(preset: Preset) -> str:
    """Return the quality that was measured for a preset, in words."""
    judged = preset.judged
    if not {"plan", "growing", "samples"} <= set(judged):
        return "not judged"
    return (
        f"{judged['plan']:.1f} dB to full compute, {judged['growing']:.1f} dB by the plan that needs no calibration "
        f"(on the {judged['samples']} calibration samples)"
    )


def begin() -> None:
    """Say that the work begins, before the imports that take seconds."""
    errors.print("loading torch and diffusers", highlight=False)


@contextmanager
def plain_errors(resumes: bool = False) -> Iterator[list[str]]:
    """Print an error that a user can fix in one line, and exit with status 1, or 130 for an interrupt.

    Yields a list, to which the command adds the options that each save memory.
    """
    relief: list[str] = []
    try:
        yield relief
    except (typer.Exit, typer.Abort):
        raise
    except (ValueError, OSError) as error:
        say_error(str(error))
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        from relcache.bench.sampling.pipelines import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        hint = f"; it would help to give {', or '.join(relief)}" if relief else ""
        say_error(f"out of memory{hint}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        more = "; finished parts are kept, and the same command resumes from them" if resumes else ""
        errors.print(f"interrupted{more}")
        raise typer.Exit(130) from error


class ProgressLines(Progress):
    """Progress for a log, where a bar cannot move: a line at once, and then at most one each half minute."""

    every = 30.0  # seconds
    _said = -math.inf
    _resumed = 0.0, 0.0  # seconds and pieces after which the present work began: before it they were there already

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def reset(self, task_id: TaskID, **changes: Any) -> None:
        super().reset(task_id, **changes)
        self._said, self._resumed = -math.inf, (0.0, 0.0)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        with self._lock:
            task, now = self._tasks[task_id], time.monotonic()
            if (task.elapsed or 0) < 1:  # pieces that were there already are counted at once
                self._resumed = task.elapsed or 0.0, task.completed
            if task.total is None or now - self._said < self.every:
                return
            self._said = now
        seconds = task.elapsed or 0
        done = f"{task.completed:g} of {task.total:g} after {seconds:.0f} s"
        began, known = self._resumed
        if task.completed > known and seconds > began:
            done += f", about {(seconds - began) * (task.total - task.completed) / (task.completed - known):.0f} s left"
        self.console.print(f"{done}: {task.description}", highlight=False, markup=False, soft_wrap=True)


def progress_bar() -> Progress:
    """Return a progress bar on stderr, or lines if that is no terminal."""
    columns = TextColumn("{task.description:<44}"), BarColumn(bar_width=24), MofNCompleteColumn()
    kind = Progress if errors.is_terminal else ProgressLines
    return kind(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=errors)


def relief_of(batch: int, device: str = "cpu", dtype: str = "", offload: str = "") -> list[str]:
    """Return the options with which a run with these settings would need less memory, most helpful first."""
    import torch

    from relcache.bench.sampling.pipelines import OFFLOADS

    relief = []
    on_gpu = torch.cuda.is_available() and not device.startswith("cpu")
    if on_gpu and offload in OFFLOADS[:-1]:
        relief.append(f"--offload {OFFLOADS[OFFLOADS.index(offload) + 1]}")
    if dtype == "float32":
        relief.append("--dtype bfloat16")
    if batch > 1:
        relief.append(f"a --batch below {batch}")
    return relief


def rich_table(rows: list[dict[str, Any]], title: str, columns: Mapping[str, Column]) -> Table:
    """Return a comparison's rows as a table for the terminal, with a section for each number of full steps."""
    unit, scale = flops_unit([row["tflops"] for row in rows])
    headings = [("method", "method", ""), ("full", "nfc", ".4g"), ("τ", "threshold", ".3g"), (unit, "flops", ".1f"),
                ("s", "seconds", ".3g")]  # fmt: skip
    headings += [(column.heading, name, column.form) for name, column in columns.items() if not column.detail]
    scaled = [{**row, "flops": None if row["tflops"] is None else row["tflops"] * scale} for row in rows]
    return terminal_table(scaled, title, headings, section="nfc_target")


def terminal_table(rows: Rows, title: str, columns: Columns, section: str = "") -> Table:
    """Return `rows` as a table for the terminal; a section ends where the value of the key `section` changes.

    A note below the table explains rows that are not at equal cost.
    """
    from rich.table import Table

    cells, note = formatted(rows, columns)
    table = Table(
        title=Text(title), caption=note or None, caption_justify="left", header_style="bold", box=None, padding=(0, 1),
        pad_edge=False,
    )  # fmt: skip
    for heading, key, _ in columns:
        short = len(heading) < 10 or " " not in heading
        table.add_column(heading, justify="left" if key == "method" else "right", no_wrap=short)
    for index, line in enumerate(cells):
        last = index + 1 < len(rows) and rows[index].get(section) not in (None, rows[index + 1].get(section))
        table.add_row(*map(escape, line), end_section=last)
    return table
