"""Read a folder of results, and check its form.

Users open, edit and move these files, so each error names the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relcache.bench import files
from relcache.bench.files import MAYBE_NUMBER, NUMBER
from relcache.bench.tables import csv_rows

SETTINGS, TABLE, SAMPLES, RACE = "settings.json", "table.json", "samples.csv", "race.json"

NOTHING = type(None)
SETTINGS_FORM = {
    "setup": {"model": str, "steps": int},
    "conditions": [(int, str)],
    "runs": str,
    "cells": [{"name": str, "method": str, "nfc_target": (int, NOTHING)}],
    "columns": {...: str},
}
ROWS_FORM = [
    {"method": str, "nfc": NUMBER, "nfc_target": MAYBE_NUMBER, "tflops": MAYBE_NUMBER, "threshold": MAYBE_NUMBER,
     ...: MAYBE_NUMBER}
]  # fmt: skip
RACE_FORM = {
    "about": str, "default": str, "qualities": {...: str}, "columns": {...: str}, "unfit": {...: str},
    "runs": [{"title": str, "method": str, "group": str, "nfc": NUMBER, "share": MAYBE_NUMBER}],
    "equal_time": [{"nfc": int, "share": NUMBER, "default": {...: [NUMBER]}, "others": [{"title": str}]}],
}  # fmt: skip
REPORT_FORM = {
    "batch": int, "nfc": NUMBER, "flops": MAYBE_NUMBER, "linear_flops": MAYBE_NUMBER, "cache_bytes": NUMBER,
    "signal": [MAYBE_NUMBER], "full_steps": [int],
}  # fmt: skip
PART = ("seeds", "seconds", "memory", "report")
INDEX_FORM = {
    "about": {"samples": int, "batch": int, "steps": int, "methods": [str]}, "modules": [str], "branches": [str],
}  # fmt: skip
TRIED_FORM = [[NUMBER]]
BUDGETS_FORM = {...: {"method": str}}


def read_results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings of a benchmark's folder, and the rows of its table, one for each cell of the settings.

    Raises:
        ValueError: a file is missing, damaged or of another form, or the files belong to different runs.
    """
    settings = files.read_json(folder / SETTINGS, SETTINGS_FORM)
    rows = files.read_json(folder / TABLE, ROWS_FORM)
    if [row["method"] for row in rows] != [cell["method"] for cell in settings["cells"]] or not rows:
        raise ValueError(f"{TABLE} and {SETTINGS} of {folder} belong to different runs: make them again")
    return settings, rows


def captions_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the conditions of the settings as texts: prompts, names of classes, or their numbers."""
    names = settings.get("names") or {}
    return [str(names.get(str(condition), condition)) for condition in settings["conditions"]]


def about_of(settings: Mapping[str, Any]) -> str:
    """Return a title for figures: model, samples, steps and date."""
    setup, samples = settings["setup"], len(settings["conditions"])
    parts = [Path(setup["model"]).name, f"{samples} samples", f"{setup['steps']} steps", settings.get("date")]
    return ", ".join(filter(None, parts))


def read_part(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a batch's seeds, seconds and bytes by name, and its report.

    Raises:
        ValueError: the file is damaged or of another form.
    """
    arrays = files.read_arrays(path, PART)
    with files.reading(path):
        report = json.loads(str(arrays["report"]))
        files.check_form(report, REPORT_FORM, "the report")
    return arrays, report


def read_samples_table(folder: Path, cells: Sequence[Mapping[str, Any]]) -> list[list[dict[str, str]]]:
    """Return the rows of samples.csv for each of `cells`.

    Raises:
        ValueError: the file is missing or damaged, or lacks the rows of a cell.
    """
    path = folder / SAMPLES
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    with files.reading(path):
        for row in csv_rows(path.read_text(encoding="utf-8-sig")):
            row["seed"]  # the page needs it
            found.setdefault((row["method"], row["nfc_target"]), []).append(row)
        keys = [(cell["method"], "" if cell["nfc_target"] is None else str(cell["nfc_target"])) for cell in cells]
        missing = next((key for key in keys if key not in found), None)
        if missing is not None:
            raise ValueError(f"it has no samples of {missing[0]} at {missing[1] or 'its own'} full steps")
    return [found[key] for key in keys]
