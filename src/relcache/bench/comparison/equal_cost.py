"""Whether the rows of a table are of equal cost: which have another number of full steps than was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLOSE = 0.005  # full steps; tables show two digits
MARK = "*"
NOTE = f"{MARK} not the number of full steps that was asked for: this row is not at equal cost with those that have it"


def off_target(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each row whether its `nfc` is another than its `nfc_target`; of one without, than every other row's.

    The first row is full compute, which has all steps. Where no row has a target, none is off.
    """
    asked = {row["nfc_target"] for row in rows[1:] if row.get("nfc_target") is not None}
    off = [False]
    for row in rows[1:]:
        targets = asked if row.get("nfc_target") is None else {row["nfc_target"]}
        off.append(bool(targets) and all(abs(row["nfc"] - target) > CLOSE for target in targets))
    return off[: len(rows)]


def marked(rows: Sequence[Mapping[str, Any]], form: str) -> tuple[list[dict[str, Any]], str]:
    """The rows with their `nfc` as text, marked where it is off; and the line to stand below, empty if none is."""
    off = off_target(rows)
    shown = [
        {**row, "nfc": f"{format(row['nfc'], form)}{MARK * is_off}"} for row, is_off in zip(rows, off, strict=True)
    ]
    return shown, NOTE if any(off) else ""
