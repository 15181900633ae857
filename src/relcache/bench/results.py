"""What a comparison leaves for its readers: tables, rows of each sample, sheets of pictures or clips."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from relcache.bench import files, gallery
from relcache.bench.benchmarks import Benchmark, Column
from relcache.bench.comparison import Cell, Comparison
from relcache.bench.published import published
from relcache.figures.sheet import Row

COST = {
    "nfc_target": "",
    "nfc": ".2f",
    "interval": "",
    "threshold": ".4g",
    "tflops": ".4f",
    "seconds": ".3f",
    "cache_gb": ".4f",
    "memory_gb": ".2f",
}
SHOWN = 16  # samples on a sheet


def rows_of(comparison: Comparison, columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """A row for each cell: what it cost, and every column."""
    return [
        comparison.row(cell) | {name: column.summary(comparison, cell) for name, column in columns.items()}
        for cell in comparison.cells
    ]


def write(
    comparison: Comparison, benchmark: Benchmark, columns: Mapping[str, Column], protocol: str = ""
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write table.json, table.csv, table.md, samples.csv, settings.json and sheets.

    Args:
        comparison: a finished one.
        benchmark: what it is of.
        columns: of the table.
        protocol: the paper's benchmark whose numbers stand beside those measured; none for other protocols.

    Returns:
        The table's rows, and the files.
    """
    rows = rows_of(comparison, columns)
    out, settings = comparison.out, comparison.settings
    published_columns: dict[str, str] = {}
    if protocol:
        for row in rows:
            numbers = published(protocol, row["method"], row["nfc_target"])
            row |= {f"{name} (paper)": value for name, value in numbers.items() if name in (*columns, "tflops")}
        published_columns = dict.fromkeys(
            sorted({key for row in rows for key in row if key.endswith("(paper)")}), ".4g"
        )
    forms = {"method": ""} | COST | {name: column.form for name, column in columns.items()} | published_columns
    kept = {key: form for key, form in forms.items() if any(row.get(key) is not None for row in rows)}
    files.write_json(out / "table.json", rows)
    files.write_whole(out / "table.csv", _csv(rows, list(forms)))
    files.write_whole(out / "table.md", (_about(comparison) + files.markdown_table(rows, kept)).encode())
    files.write_json(
        out / "settings.json", asdict(settings) | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    )
    files.write_whole(out / "samples.csv", _samples(comparison))
    names = ["table.json", "table.csv", "table.md", "samples.csv"]
    return rows, [*(out / name for name in names), *_sheets(comparison, benchmark, rows)]


def _about(comparison: Comparison) -> str:
    settings = comparison.settings
    setup = settings.setup
    options = ", ".join(f"{name} {value}" for name, value in setup.options.items())
    return (
        f"{settings.samples} samples of {setup.model}, {setup.steps} steps, {options}, seeds from {settings.seed}, "
        f"batches of {settings.batch}, {setup.dtype} on {setup.device}. Thresholds found on "
        f"{len(settings.calibration)} other seeds. TFLOPs and seconds are per sample, seconds the median over batches "
        "after the first.\n\n"
    )


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _samples(comparison: Comparison) -> bytes:
    """A row for each sample: its seed, its condition, and every number that was measured of it."""
    rows: list[dict[str, Any]] = []
    settings = comparison.settings
    for cell in comparison.cells:
        each: list[dict[str, Any]] = [
            {"method": cell.entry.name, "nfc_target": cell.nfc, "seed": settings.seed + index, "condition": condition}
            for index, condition in enumerate(settings.conditions)
        ]
        for measure in settings.setup.measures:
            for name in comparison.scalars(cell, measure):
                values = torch.cat(list(comparison.values(cell, measure, name))).tolist()
                for row, value in zip(each, values, strict=True):
                    row[name] = value
        rows += each
    return _csv(rows, list(dict.fromkeys(key for row in rows for key in row)))


def _sheets(comparison: Comparison, benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """A sheet for each number of full steps."""
    shown = {cell.name: row for cell, row in zip(comparison.cells, rows, strict=True)}
    prompts = (
        [str(condition) for condition in comparison.settings.conditions[:SHOWN]] if benchmark.task != "class" else []
    )
    full = Row("full compute", comparison.images(comparison.full, SHOWN))
    written: list[Path] = []
    for target in dict.fromkeys(cell.nfc for cell in comparison.cells[1:]):
        cells = [cell for cell in comparison.cells[1:] if cell.nfc == target]
        sheet = [full, *(Row(_caption(cell, shown[cell.name]), comparison.images(cell, SHOWN)) for cell in cells)]
        steps = comparison.settings.setup.steps
        title = "methods as given" if target is None else f"{target} of {steps} steps in full"
        suffix = "" if target is None else f"-nfc{target}"
        written += gallery.write_sheets(comparison.out, sheet, title, prompts, suffix)
    return written


def _caption(cell: Cell, row: Mapping[str, Any]) -> str:
    quality = f"{row['psnr']:.1f} dB, " if row.get("psnr") is not None else ""
    return f"{cell.entry.name}\n{quality}{row['nfc']:.4g} full"
