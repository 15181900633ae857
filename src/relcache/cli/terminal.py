"""What a command prints: results, progress, errors that a user can mend."""

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

console = Console(width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True)


def say(text: str) -> None:
    """Print `text` as it is: paths and names hold brackets, and are not to be broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
        more = "; what was finished is kept, and the same command goes on from there" if resumes else ""
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


def relief_of(batch: int, device: str = "cpu", dtype: str = "", offload: str = "") -> list[str]:
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
