"""Printing of results, progress and errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from relcache.bench.comparison.benchmarks import Column
from relcache.bench.comparison.equal_cost import marked
from relcache.bench.sampling.pipelines import OFFLOADS, is_out_of_memory
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
        f"({judged['samples']} samples, the calibration's own)"
    )


@contextmanager
def plain_errors(relief: Sequence[str], resumes: bool = False) -> Iterator[None]:
    """Print errors that a user can fix in one line and exit with status 1, or 130 for an interrupt.

    `relief` are options that would each save memory; it may grow while the command runs.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        say_error(str(error))
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = f"; it would help to give {', or '.join(relief)}" if relief else ""
        say_error(f"out of memory{hint}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        more = "; finished parts are kept, and the same command resumes from them" if resumes else ""
        errors.print(f"interrupted{more}")
        raise typer.Exit(130) from error


def progress_bar() -> Progress:
    """Return a progress bar on stderr."""
    columns = TextColumn("{task.description:<44}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=errors)


def relief_of(batch: int, device: str = "cpu", dtype: str = "", offload: str = "") -> list[str]:
    """Return the options with which a run with these settings would need less memory, most helpful first."""
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
    """A comparison's rows as a table for the terminal; a line below says so where rows are not at equal cost."""
    counted, note = marked(rows, ".4g")
    table = Table(
        title=Text(title), caption=note or None, caption_justify="left", header_style="bold", box=None, padding=(0, 1),
        pad_edge=False,
    )  # fmt: skip
    most = max((row["tflops"] for row in rows if row["tflops"] is not None), default=0)
    unit, scale = ("TFLOPs", 1) if most >= 1 else ("GFLOPs", 1e3)
    shown = {
        "full": ("nfc", ""),
        "τ": ("threshold", ".3g"),
        unit: ("flops", ".1f"),
        "s": ("seconds", ".3g"),
        **{column.heading: (name, column.form) for name, column in columns.items() if not column.detail},
    }
    table.add_column("method", no_wrap=True)
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    past = None
    for row in counted:
        if past is not None and row["nfc_target"] != past:
            table.add_section()
        past = row["nfc_target"]
        values = {**row, "flops": None if row["tflops"] is None else row["tflops"] * scale}
        cells = ("–" if values[key] is None else format(values[key], form) for key, form in shown.values())
        table.add_row(escape(row["method"]), *cells)
    return table
