"""Check that the ranks of methods are no accident of one training run: the same rows on weights of another seed.

    python training/train_dit.py --updates 6000 --batch 64 --seed 1 --run runs/dit-1 --export runs/dit-1/pipeline
    python benchmarks/other_weights.py --model dit-fashion-mnist --weights runs/dit-1/pipeline/transformer \\
        --out benchmarks/results/other-weights

`--weights` is a folder of the transformer, or its safetensors file. Each row is 64 samples at 14 and at 8 full steps of
50: PSNR in dB to full compute, the mean and half the width of its 95 % interval. The result has Spearman's correlation
of the rows' order on both sets of weights, and the pairs of rows whose order differs although both intervals part.
"""

from __future__ import annotations

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


def main() -> None:
    """Measure all rows on both sets of weights."""
    parser = parser_for(__doc__, out_required=True)
    parser.add_argument("--model", default="dit-fashion-mnist")
    parser.add_argument("--weights", type=Path, required=True, help="a transformer's folder or safetensors file")
    options = parser.parse_args()
    path = options.weights
    path = path / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    results: dict[str, Any] = {"model": options.model, "samples": SAMPLES}
    measured: list[dict[int, dict[str, list[float]]]] = []
    for weights in (None, load_file(path)):
        bench = Bench(options.model, options.out)
        if weights is not None:
            bench.pipe.transformer.load_state_dict({name: value.float() for name, value in weights.items()})
        measured.append({full: rows_of(bench, full) for full in (14, 8)})
    results |= {f"{full} of 50": compared(measured[0][full], measured[1][full]) for full in (14, 8)}
    files.write_json(options.out / f"{options.model}.json", results)
    for key in ("14 of 50", "8 of 50"):
        found = results[key]
        for name in sorted(found["shipped"], key=lambda name: -found["shipped"][name][0]):
            shipped, other = (
                f"{mean:.1f} ± {half:.1f}" for mean, half in (found["shipped"][name], found["other"][name])
            )
            print(f"{key} | {name:40} | {shipped} | {other}")
        print(f"Spearman {found['spearman']}, swapped although intervals part: {found['swapped']}")


if __name__ == "__main__":
    main()
