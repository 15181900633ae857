"""Print the README's tables of all methods on the three shipped models, from the tables of `relcache demo`.

    python benchmarks/summary.py benchmarks/results/demo

PSNR in dB and SSIM are to full compute. The score is that of the shipped classifier (class) or recogniser.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SCORES = {"class": "accuracy", "text": "right", "video": "right"}
LABELS = {"fora": "FORA", "taylorseer": "TaylorSeer", "taylorseer-p3": "TaylorSeer, other phase", "rfe": "RFE alone",
          "rcs": "RCS alone", "rfc": "RFC", "auto": "relcache's default"}  # fmt: skip


def label(row: dict[str, Any]) -> str:
    """Return the README's name of a method."""
    name, _, order = row["method"].rpartition("-")
    return f"{LABELS[name]}, m={order}" if name else LABELS[order]


def cell(row: dict[str, Any], score: str) -> str:
    """Return PSNR, SSIM and the score of a row."""
    return f"{row['psnr']:.2f} · {row['ssim']:.4f} · {row[score]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nfc", type=int, nargs="+", default=[14, 8])
    options = parser.parse_args()
    tables = {task: json.loads((options.folder / task / "table.json").read_text()) for task in SCORES}
    full = {task: next(row for row in rows if row["method"] == "full") for task, rows in tables.items()}
    for nfc in options.nfc:
        known = {task: {label(row): row for row in rows if row["nfc_target"] == nfc} for task, rows in tables.items()}
        print(f"| {nfc} full steps of 50 | " + " | ".join(tables) + " |\n" + "| --- " * (1 + len(tables)) + "|")
        scores = (f"– · – · {full[task][score]:.3f}" for task, score in SCORES.items())
        print("| full compute | " + " | ".join(scores) + " |")
        for name in dict.fromkeys(name for rows in known.values() for name in rows):
            cells = (cell(known[task][name], SCORES[task]) if name in known[task] else "–" for task in tables)
            print(f"| {name} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
