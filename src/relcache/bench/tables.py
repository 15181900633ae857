"""Tables: rows as CSV and Markdown, with a mark at each row that is not at equal cost."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheet programs run texts with these beginnings
LONGEST_CELL = 1 << 24  # characters; Python's own limit is too low for long prompts
TOLERANCE = 0.005  # full steps; tables show two digits
MARK = "*"
NOTE = f"{MARK} not the requested number of full steps: this row is not at equal cost with rows that have it"

Rows = Sequence[Mapping[str, Any]]
Columns = Sequence[tuple[str, str, str]]  # heading, key in a row, format


def off_target(rows: Rows) -> list[bool]:
    """Return for each row whether its `nfc` differs from its `nfc_target`.

    A row without a target is compared with the targets of all others. The first row is full compute and is never off.
    """
    targets = {row["nfc_target"] for row in rows[1:] if row.get("nfc_target") is not None}
    off = [False]
    for row in rows[1:]:
        own = targets if row.get("nfc_target") is None else {row["nfc_target"]}
        off.append(bool(own) and all(abs(row["nfc"] - target) > TOLERANCE for target in own))
    return off[: len(rows)]


def formatted(rows: Rows, columns: Columns) -> tuple[list[list[str]], str]:
    """Return the cells of each row as text, and a note on their marks, which is empty without marks.

    None becomes a dash, and each `nfc` off its target gets a mark.
    """
    counted = any(key == "nfc" for _, key, _ in columns)
    off = off_target(rows) if counted else [False] * len(rows)
    cells = [
        ["–" if row.get(key) is None else format(row[key], form) + MARK * (is_off and key == "nfc")
         for _, key, form in columns]
        for row, is_off in zip(rows, off, strict=True)
    ]  # fmt: skip
    return cells, NOTE if any(off) else ""


def with_half_width(value: Sequence[float] | None, form: str) -> str:
    """Return a mean, and half the width of its interval, as a text; `value` is mean, least and most."""
    if value is None or math.isnan(value[0]):
        return "–"
    mean, least, most = value
    return f"{mean:{form}} ± {(most - least) / 2:{form}}"


def equal_time_rows(race: Mapping[str, Any], table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one of a race's tables at equal time, the default first, with texts for the intervals.

    A row has its value by each quality, and the default's lead under `KEY_lead`. `parted` says which leads' intervals
    leave out 0.
    """
    keys = list(table["default"])
    rows: list[dict[str, Any]] = [{"title": race["default"], "parted": {}}]
    rows[0] |= {key: with_half_width(table["default"][key], ".1f") for key in keys}
    for other in table["others"]:
        rows.append({"title": other["title"], "parted": {key: other[key]["parted"] for key in keys}})
        for key in keys:
            rows[-1] |= {
                key: with_half_width(other[key]["value"], ".1f"),
                f"{key}_lead": f"{'+' * (other[key]['lead'][0] >= 0)}{with_half_width(other[key]['lead'], '.1f')}",
            }
    return rows


def markdown_table(rows: Rows, columns: Columns) -> str:
    """Return `rows` as a Markdown table, with the note on its marks below."""
    cells, note = formatted(rows, columns)
    lines = [[heading for heading, _, _ in columns], ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + (f"\n{note}.\n" if note else "")


def flops_unit(tflops: Sequence[float | None]) -> tuple[str, float]:
    """Return the unit that suits these TFLOPs, and how many of that unit make one TFLOP."""
    return ("TFLOPs", 1) if max((n for n in tflops if n is not None), default=0) >= 1 else ("GFLOPs", 1e3)


def csv_bytes(rows: Rows, columns: Sequence[str], heading: bool = True) -> bytes:
    """Return `rows` as CSV. A text that a spreadsheet program would run as a formula gets an apostrophe before it."""
    lines = [_csv_line(columns)] if heading else []
    lines += [_csv_line([_no_formula(row.get(column)) for column in columns]) for row in rows]
    return "".join(lines).encode()


def _csv_line(cells: Sequence[Any]) -> str:
    """Return one row with a line feed; the csv module quotes carriage returns only where they end lines."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_rows(text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file's text by its heading; a row that is too short has empty texts.

    Raises:
        ValueError: no CSV, or a row with more cells than the heading.
    """
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey="", restval="", strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows, 1):
        if isinstance(row.get(""), list):
            raise ValueError(f"row {number} has more cells than the heading; quote texts that hold commas")
    return rows
