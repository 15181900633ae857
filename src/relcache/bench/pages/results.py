"""What a comparison leaves for its readers: tables, rows of each sample, sheets of pictures or clips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from relcache.bench import files
from relcache.bench.comparison.comparison import Comparison
from relcache.bench.comparison.entries import is_usual
from relcache.bench.comparison.equal_cost import marked
from relcache.bench.comparison.prepare import said
from relcache.bench.comparison.published import published
from relcache.bench.comparison.summaries import Column
from relcache.bench.pages.illustrations import illustrate
from relcache.bench.saved import SAMPLES, SETTINGS, TABLE

TABLES = (TABLE, "table.csv", "table.md", SAMPLES)
COST = {
    "nfc_target": "",
    "nfc": ".2f",
    "interval": "",
    "phase": "",
    "threshold": ".4g",
    "tflops": ".4f",
    "tflops_linear": ".4f",
    "seconds": ".3f",
    "cache_gb": ".4f",
    "memory_gb": ".2f",
}


def rows_of(comparison: Comparison, columns: Mapping[str, Column]) -> list[dict[str, Any]]:
    """A row for each cell: what it cost, and every column."""
    return [
        comparison.row(cell) | {name: column.summary(comparison, cell) for name, column in columns.items()}
        for cell in comparison.cells
    ]


def write(
    comparison: Comparison, columns: Mapping[str, Column], protocol: str = ""
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write table.json, table.csv, table.md, samples.csv, settings.json, sheets and figures.

    Args:
        comparison: a finished one.
        columns: of the table.
        protocol: the paper's benchmark whose numbers stand beside those measured; none for other protocols.

    Returns:
        The table's rows, and the files.
    """
    rows = rows_of(comparison, columns)
    out, settings = comparison.out, comparison.settings
    published_columns: dict[str, str] = {}
    if protocol:
        configs = {entry.name: entry.config for entry in comparison.entries}
        for row in rows:
            usual = row["method"] == "full" or is_usual(configs[row["method"]], row["method"])
            numbers = published(protocol, row["method"], row["nfc_target"]) if usual else {}
            row |= {f"{name} (paper)": value for name, value in numbers.items() if name in (*columns, *COST)}
        published_columns = dict.fromkeys(
            sorted({key for row in rows for key in row if key.endswith("(paper)")}), ".4g"
        )
    shown = {name: column for name, column in columns.items() if not column.detail}
    forms = {"method": ""} | COST | {name: column.form for name, column in columns.items()} | published_columns
    kept = {
        key: form
        for key, form in forms.items()
        if (key in shown or key not in columns) and any(row.get(key) is not None for row in rows)
    }
    files.write_json(out / TABLE, rows)
    files.write_whole(out / "table.csv", files.csv_bytes(rows, list(forms)))
    shown_rows, note = marked(rows, COST["nfc"])
    text = _about(comparison) + files.markdown_table(shown_rows, kept | {"nfc": ""})
    files.write_whole(out / "table.md", (text + (f"\n{note}.\n" if note else "")).encode())
    cells = [
        {"name": comparison.folder(cell).name, "method": cell.entry.name, "nfc_target": cell.nfc}
        for cell in comparison.cells
    ]
    files.write_json(
        out / SETTINGS,
        asdict(settings)
        | {"runs": comparison.store.relative_to(out).as_posix(), "cells": cells}
        | {"columns": {name: column.heading for name, column in shown.items()}}
        | {"torch": torch.__version__, "threads": torch.get_num_threads()},
    )
    files.write_whole(out / SAMPLES, _samples(comparison))
    return rows, [*(out / name for name in TABLES), *illustrate(out)]


def _about(comparison: Comparison) -> str:
    settings = comparison.settings
    setup = settings.setup
    options = ", ".join(f"{name} {value}" for name, value in setup.options.items())
    return (
        f"{settings.samples} samples of {setup.model}, {setup.steps} steps, {options}, seeds {said(settings.seeds)}, "
        f"batches of {settings.batch}, {setup.dtype} on {setup.device}. Thresholds found on "
        f"{len(settings.calibration)} other seeds. TFLOPs and seconds are per sample, seconds the median over batches; "
        "tflops_linear leaves the products of attention out.\n\n"
    )


def _samples(comparison: Comparison) -> bytes:
    """A row for each sample: its seed, its condition, and every number that was measured of it."""
    settings = comparison.settings
    measures = {name: comparison.scalars(comparison.full, name) for name in settings.setup.measures}
    columns = [
        "method",
        "nfc_target",
        "number",
        "seed",
        "condition",
        *(n for names in measures.values() for n in names),
    ]
    written = [files.csv_bytes([], columns)]
    for cell in comparison.cells:
        each: list[dict[str, Any]] = [
            {"method": cell.entry.name, "nfc_target": cell.nfc, "number": number, "seed": seed, "condition": condition}
            for number, (seed, condition) in enumerate(zip(settings.seeds, settings.conditions, strict=True))
        ]
        for measure, names in measures.items():
            for name in names:
                values = torch.cat(list(comparison.values(cell, measure, name))).tolist()
                for row, value in zip(each, values, strict=True):
                    row[name] = None if math.isnan(value) else value
        written.append(files.csv_bytes(each, columns, heading=False))
    return b"".join(written)
