"""Write a comparison's tables, rows of each sample, sheets of pictures or clips, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from relcache.bench import files
from relcache.bench.comparison.comparison import Comparison
from relcache.bench.comparison.entries import is_usual
from relcache.bench.comparison.prepare import about
from relcache.bench.comparison.published import published
from relcache.bench.comparison.summaries import Column
from relcache.bench.pages.illustrations import illustrate
from relcache.bench.sampling.pipelines import class_names
from relcache.bench.saved import SAMPLES, SETTINGS, TABLE
from relcache.bench.tables import csv_bytes, markdown_table

TABLES = (TABLE, "table.csv", "table.md", SAMPLES)
COST = {
    "nfc_target": "", "nfc": ".2f", "interval": "", "phase": "", "threshold": ".4g", "tflops": ".4f",
    "tflops_linear": ".4f", "seconds": ".3f", "cache_gb": ".4f", "memory_gb": ".2f",
}  # fmt: skip


def write_results(
    comparison: Comparison, columns: Mapping[str, Column], protocol: str = "", draw: bool = True
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write the files of a finished comparison. Return the rows of its table, and the files.

    `protocol` names the paper's benchmark to print published numbers from, "" for none. Without `draw` there are no
    figures.
    """
    out = comparison.out
    rows = [
        comparison.row(variant) | {name: column.summary(comparison, variant) for name, column in columns.items()}
        for variant in comparison.variants
    ]
    if protocol:
        configs = {entry.name: entry.config for entry in comparison.entries}
        for row in rows:
            usual = row["method"] == "full" or is_usual(configs[row["method"]], row["method"])
            numbers = published(protocol, row["method"], row["nfc_target"]) if usual else {}
            row |= {f"{name} (paper)": value for name, value in numbers.items() if name in (*columns, *COST)}
    papers = dict.fromkeys(sorted({key for row in rows for key in row if key.endswith("(paper)")}), ".4g")
    forms = {"method": ""} | COST | {name: column.form for name, column in columns.items()} | papers
    details = {name for name, column in columns.items() if column.detail}
    kept = [
        (key, key, form)
        for key, form in forms.items()
        if key not in details and any(row.get(key) is not None for row in rows)
    ]
    files.write_json(out / TABLE, rows)
    files.write_whole(out / "table.csv", csv_bytes(rows, list(forms)))
    files.write_whole(out / "table.md", (_about(comparison) + markdown_table(rows, kept)).encode())
    cells = [
        {"name": comparison.folder(variant).name, "method": variant.entry.name, "nfc_target": variant.nfc}
        for variant in comparison.variants
    ]
    files.write_json(
        out / SETTINGS,
        asdict(comparison.settings)
        | {"runs": comparison.store.relative_to(out).as_posix(), "cells": cells}
        | {"columns": {name: column.heading for name, column in columns.items() if not column.detail}}
        | {"names": {str(label): name for label, name in class_names(comparison.settings.setup.model).items()}}
        | {"torch": torch.__version__, "threads": torch.get_num_threads(), "date": date.today().isoformat()},
    )
    files.write_whole(out / SAMPLES, _samples(comparison))
    return rows, [*(out / name for name in TABLES), *(illustrate(out) if draw else [])]


def _about(comparison: Comparison) -> str:
    return (
        f"{about(comparison)}. Thresholds found on {len(comparison.settings.calibration)} other seeds. TFLOPs and "
        "seconds are per sample, seconds the median over batches; tflops_linear leaves the products of attention out."
        "\n\n"
    )


def _samples(comparison: Comparison) -> bytes:
    """Return samples.csv: a row for each sample with its seed, its condition, and its measured numbers."""
    settings = comparison.settings
    measures = {name: comparison.scalars(comparison.full, name) for name in settings.setup.measures}
    columns = ["method", "nfc_target", "number", "seed", "condition"]
    columns += [name for names in measures.values() for name in names]
    written = [csv_bytes([], columns)]
    for variant in comparison.variants:
        rows: list[dict[str, Any]] = [
            {"method": variant.entry.name, "nfc_target": variant.nfc, "number": number, "seed": seed,
             "condition": condition}
            for number, (seed, condition) in enumerate(zip(settings.seeds, settings.conditions, strict=True))
        ]  # fmt: skip
        for measure, names in measures.items():
            for name in names:
                for row, value in zip(rows, comparison.joined(variant, measure, name).tolist(), strict=True):
                    row[name] = None if math.isnan(value) else value
        written.append(csv_bytes(rows, columns, heading=False))
    return b"".join(written)
