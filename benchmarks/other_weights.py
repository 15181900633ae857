"""Check that the ranks of methods are no accident of one training run: the same rows on weights of another seed.

    python training/train_dit.py --updates 6000 --batch 64 --seed 1 --run runs/dit-1 --export runs/dit-1/pipeline
    python benchmarks/other_weights.py --model dit-fashion-mnist --weights runs/dit-1/pipeline/transformer \\
        --out benchmarks/results/other-weights

`--weights` is a folder of the transformer, or its safetensors file. Each row is 64 samples at 14 and at 8 full steps of
50: PSNR in dB to full compute, the mean and half the width of its 95 % interval. The result has Spearman's correlation
of the rows' order on both sets of weights, and the pairs of rows whose order differs although both intervals part.

Two finished races are compared by the rows that both have, at each number of full steps:

    python benchmarks/other_weights.py --races benchmarks/results/race/race-small-flux/race.json runs/other/race.json \
        --model small-flux-larger --out benchmarks/results/other-weights
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from correction import ROWS, SAMPLES, SOLVERS, Bench, console, solver, spread
from safetensors.torch import load_file
from shared import parser_for

from relcache.bench import files
from relcache.bench.quality.metrics.pair import psnr

CHOSEN = (
    "default", "default, uncorrected", "even gaps, uncorrected", "reuse", "RFE m=2", "modules", "FORA",
    "TaylorSeer m=1", "TaylorSeer m=1, corrected", "RFC m=2, threshold steered",
    "RFC m=2, threshold steered, corrected",
)  # fmt: skip


def rows_of(bench: Bench, full: int) -> dict[str, list[float]]:
    """Return the PSNR of each row at a number of full steps."""
    reference, rows, base = bench.sample(50)[0], {}, bench.pipe.scheduler
    for name in CHOSEN:
        console.print(f"{bench.model}: {full} of 50, {name}")
        rows[name] = spread(psnr(bench.sample(50, method=ROWS[name](full, 50))[0], reference))
    for name in SOLVERS:
        bench.pipe.scheduler = solver(name, base)
        rows[f"no cache, {name}"] = spread(psnr(bench.sample(full)[0], reference))
    bench.pipe.scheduler = base
    return rows


def compared(shipped: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, Any]:
    """Return how far the order of the rows is the same."""
    orders = [sorted(rows, key=lambda name: -rows[name][0]) for rows in (shipped, other)]
    moved = [orders[0].index(name) - orders[1].index(name) for name in shipped]
    count = len(moved)
    swapped = []
    for a, b in combinations(shipped, 2):
        gaps = [rows[a][0] - rows[b][0] for rows in (shipped, other)]
        parted = all(abs(gap) > rows[a][1] + rows[b][1] for gap, rows in zip(gaps, (shipped, other), strict=True))
        if parted and gaps[0] * gaps[1] < 0:
            swapped.append([a, b])
    spearman = 1 - 6 * sum(move**2 for move in moved) / (count * (count**2 - 1))
    return {"shipped": shipped, "other": other, "spearman": round(spearman, 3), "swapped": swapped}


def rows_of_races(paths: Sequence[Path]) -> list[dict[int, dict[str, list[float]]]]:
    """Return the rows that all races have, by their number of full steps."""
    races: list[dict[int, dict[str, list[float]]]] = []
    for path in paths:
        rows: dict[int, dict[str, list[float]]] = defaultdict(dict)
        for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            if run["psnr"] is not None and run["nfc_target"]:
                mean, low, high = run["psnr"]
                rows[run["nfc_target"]][run["title"]] = [round(mean, 3), round((high - low) / 2, 3)]
        races.append(rows)
    shared = {full: [name for name in rows if all(name in race[full] for race in races)]
              for full, rows in sorted(races[0].items(), reverse=True)}  # fmt: skip
    return [{full: {name: race[full][name] for name in names} for full, names in shared.items() if len(names) > 2}
            for race in races]  # fmt: skip


def rows_of_weights(options: argparse.Namespace) -> list[dict[int, dict[str, list[float]]]]:
    """Measure all rows on the shipped weights and on others."""
    path = options.weights
    path = path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    measured: list[dict[int, dict[str, list[float]]]] = []
    for weights in (None, load_file(path)):
        bench = Bench(options.model, options.out)
        if weights is not None:
            bench.pipe.transformer.load_state_dict({name: value.float() for name, value in weights.items()})
        measured.append({full: rows_of(bench, full) for full in (14, 8)})
    return measured


def main() -> None:
    """Compare the rows of two sets of weights."""
    parser = parser_for(__doc__, out_required=True)
    parser.add_argument("--model", default="dit-fashion-mnist", help="the shipped model, and the name of the result")
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument("--weights", type=Path, help="a transformer's folder or safetensors file")
    sources.add_argument("--races", type=Path, nargs=2, help="race.json of the shipped model and of another")
    options = parser.parse_args()
    shipped, other = rows_of_races(options.races) if options.races else rows_of_weights(options)
    results: dict[str, Any] = {"model": options.model, "samples": SAMPLES}
    for full in shipped:
        found = compared(shipped[full], other[full])
        results[f"{full} of 50"] = found
        for name in sorted(shipped[full], key=lambda name: -shipped[full][name][0]):
            cells = (f"{mean:.1f} ± {half:.1f}" for mean, half in (shipped[full][name], other[full][name]))
            print(f"{full} of 50 | {name:40} | {' | '.join(cells)}")
        print(f"Spearman {found['spearman']}, swapped although intervals part: {found['swapped']}")
    files.write_json(options.out / f"{options.model}.json", results)


if __name__ == "__main__":
    main()
