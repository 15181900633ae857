"""Measure the worth of each part of the default on the shipped models, by changing one part at a time.

    python benchmarks/correction.py --out benchmarks/results/correction
    python benchmarks/correction.py --out benchmarks/results/correction --table

Each row is 64 samples in batches of 32. No option was chosen on their seeds. A row has two PSNRs in dB, each as the
mean and half the width of the 95 % interval. One is to full compute of these seeds, the other to the exact solution
(500 steps of the same scheduler, the first 32 samples; in the committed table 400 on the velocity models).
Each row has exactly the requested number of full steps. Rows are written one by one, and the same command resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from candidates import Chosen, Foretold, Ridge
from rich.console import Console
from shared import parser_for
from torch import Tensor

import relcache
from relcache import FORA, RFC, Forecaster, Newton, Plan, Relational, Replay, Reuse, Taylor, TaylorSeer, auto
from relcache.bench import files
from relcache.bench.comparison.arguments import call_options
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.rivals.solvers import Solver
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import spacing_for
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.method import Method
from relcache.presets import Preset, shipped
from relcache.schedules.growing import GROWTH, growing_steps

FIRST_SEED, SAMPLES, EXACT_SAMPLES, EXACT_STEPS, BATCH = 20_000, 64, 32, 500, 32
BUDGETS = [(50, 14), (50, 8), (50, 20), (50, 10), (50, 6), (28, 8), (20, 7), (10, 5)]
WHOLE = {(50, 14), (50, 8)}  # budgets with every row; the others have the short list
FINER = [(100, 14), (200, 14), (100, 8), (200, 8)]
MODELS = [task.model for task in SMALL.values()]
console = Console(stderr=True)


def ending(full: int, steps: int) -> Method:
    """Return the default of a flow model with its last full step at the very end."""
    *before, _ = growing_steps(steps, full, GROWTH["velocity"])
    return changed(auto(), schedule=Plan([*before, steps - 1]))


def by(forecaster: Forecaster) -> Callable[[int, int], Method]:
    """Return the default with another forecaster."""
    return lambda full, steps: changed(auto(full), forecaster=forecaster)


def changed(method: Method, **options: Any) -> Method:
    """Return the method with some options changed."""
    return replace(method, name="", **options)


PRESET = "calibrated plan"
Make = Callable[[int, int], Method]
SHORT: dict[str, Make] = {
    "default": lambda full, steps: auto(full),
    "default, uncorrected": lambda full, steps: auto(full, corrector=None),
    "RFC m=2, threshold steered": lambda full, steps: RFC(2, full_steps=full),
    "TaylorSeer m=1": lambda full, steps: TaylorSeer(1, **spacing_for(full, steps)),
}
ROWS: dict[str, Make] = {
    **SHORT,
    "FORA": lambda full, steps: FORA(**spacing_for(full, steps)),
    "TaylorSeer m=1, corrected": lambda full, steps: changed(
        TaylorSeer(1, **spacing_for(full, steps)), corrector=Replay()
    ),
    "RFC m=2, threshold steered, corrected": lambda full, steps: changed(RFC(2, full_steps=full), corrector=Replay()),
    "RFC m=2 at the stack, steered, corrected": lambda full, steps: changed(
        RFC(2, full_steps=full), corrector=Replay(), granularity="stack"
    ),
    "degree 2": lambda full, steps: auto(full, corrector=Replay(2)),
    "theta 0": lambda full, steps: auto(full, corrector=Replay(1, 0.0)),
    "theta 0.3": lambda full, steps: auto(full, corrector=Replay(1, 0.3)),
    "theta 1": lambda full, steps: auto(full, corrector=Replay(1, 1.0)),
    "even gaps": lambda full, steps: auto(full, growth=1.0),
    "even gaps, uncorrected": lambda full, steps: auto(full, growth=1.0, corrector=None),
    "second step full": by(Taylor(2, damping=0.5)),
    "last step full": ending,
    "modules": lambda full, steps: auto(full, granularity="module"),
    "reuse": by(Reuse()),
    "Taylor m=1": lambda full, steps: auto(full, order=1),
    "Taylor m=2": lambda full, steps: auto(full, damping=1.0),
    "RFE m=1": by(Relational(1)),
    "RFE m=2": by(Relational(2)),
    "Newton m=2": by(Newton(2)),
    "slope by its last success": by(Foretold()),
    "order by the known input": by(Chosen()),
    "ridge fit": by(Ridge()),
}


SOLVERS = {
    "same scheduler": "fewer-steps", "UniPCMultistepScheduler": "unipc", "DPMSolverMultistepScheduler": "dpm-2m"
}  # fmt: skip


def solver(name: str, base: Any) -> Any:
    """Return a plain solver for the same model, as it is in the race."""
    rival = all_rivals()[SOLVERS[name]]
    assert isinstance(rival, Solver)
    return rival.made(base)


@dataclass
class Bench:
    """One model with its samples by full compute and by the exact solution."""

    model: str
    out: Path

    def __post_init__(self) -> None:
        self.pipe = load_pipeline(self.model)
        self.seeds = [FIRST_SEED + index for index in range(SAMPLES)]
        task = next(task for task in SMALL.values() if task.model == self.model)
        self.conditions = task.conditions(self.seeds)
        self.options = call_options(self.model, None, None, None, [])

    def sample(self, steps: int, count: int = SAMPLES, method: Method | None = None) -> tuple[Tensor, list[list[int]]]:
        """Return pictures by a method, by default with nothing enabled, and the full steps of each batch."""
        sampler, made, full = Sampler(self.pipe, steps, BATCH, self.options), [], []
        for start in range(0, count, BATCH):
            rows = slice(start, min(start + BATCH, count))
            if method is None:
                made.append(sampler.call(self.seeds[rows], self.conditions[rows]))
                continue
            with relcache.enable(self.pipe, method) as handle:
                made.append(sampler.call(self.seeds[rows], self.conditions[rows]))
                full.append(handle.full_steps)
        return torch.cat(made), full

    def reference(self, steps: int, count: int = SAMPLES) -> Tensor:
        """Return the pictures of full compute, which a file keeps."""
        path = self.out / "pictures" / f"{self.model}-{steps}.pt"
        if not path.is_file():
            console.print(f"{self.model}: {steps} full steps")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.sample(steps, count)[0], path)
        return torch.load(path)

    def row(self, name: str, steps: int, full: int, make: Callable[[], tuple[Tensor, list[list[int]]]]) -> None:
        """Make a row, unless its file exists."""
        path = self.out / "parts" / self.model / f"{steps}-{full}-{name.replace(' ', '-').replace(',', '')}.json"
        if path.is_file():
            return
        console.print(f"{self.model}: {full} of {steps}, {name}")
        reference = self.reference(50 if steps > 50 else steps)
        exact = self.reference(EXACT_STEPS, EXACT_SAMPLES)
        try:
            made, taken = make()
        except ValueError as error:
            files.write_json(path, {"problem": str(error)})
            return
        known: dict[str, Any] = {"row": name, "model": self.model, "steps": steps, "budget": full, "full_steps": taken}
        known["to full compute"] = spread(psnr(made, reference))
        known["to the exact solution"] = spread(psnr(made[:EXACT_SAMPLES], exact))
        files.write_json(path, known)

    def rows(self, budgets: list[tuple[int, int]]) -> None:
        """Make all rows of some budgets."""
        for steps, full in budgets:
            listed = ROWS if (steps, full) in WHOLE else SHORT if steps <= 50 else {"default": SHORT["default"]}
            for name, build in listed.items():
                self.row(name, steps, full, lambda build=build, at=(full, steps): self.sample(at[1], method=build(*at)))
            if steps == 50 and f"{self.model}-{full}" in shipped():
                chosen = Preset.named(f"{self.model}-{full}").method
                self.row(PRESET, steps, full, lambda chosen=chosen: self.sample(50, method=chosen))
            if steps <= 50:
                base = self.pipe.scheduler
                for name in SOLVERS:
                    self.pipe.scheduler = solver(name, base)
                    self.row(f"no cache, {name}", steps, full, lambda full=full: self.sample(full))
                    self.pipe.scheduler = base
        self.row("full compute", 50, 50, lambda: (self.reference(50), []))


def spread(values: Tensor) -> list[float]:
    """Return the mean and half the width of its 95 % interval."""
    return [round(float(values.mean()), 3), round(1.96 * float(values.std()) / len(values) ** 0.5, 3)]


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return the rows in `parts`, or else those of an earlier table."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("parts/*/*.json"))]
    if not found and (out / "table.json").is_file():
        found = json.loads((out / "table.json").read_text(encoding="utf-8"))
    return [row for row in found if "row" in row]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Return the lines of the rows' Markdown tables."""
    for steps, full in (*BUDGETS, *FINER, (50, 50)):
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            if (row["steps"], row["budget"]) == (steps, full):
                found.setdefault(row["row"], {})[row["model"]] = row
        if not found:
            continue
        yield f"| {full} full steps of {steps} | " + " | ".join(MODELS) + " |"
        yield "| --- " * (len(MODELS) + 1) + "|"
        order = [*ROWS, PRESET, *(f"no cache, {name}" for name in SOLVERS), "full compute"]
        for name in sorted(found, key=order.index):
            cells = []
            for model in MODELS:
                row = found[name].get(model)
                pairs = [row["to full compute"], row["to the exact solution"]] if row else []
                cells.append(" · ".join(f"{mean:.1f} ± {half:.1f}" for mean, half in pairs) or "–")
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def main() -> None:
    """Make the missing rows, and print the tables."""
    parser = parser_for(__doc__, out_required=True)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--table", action="store_true", help="print the table of the rows that were made")
    options = parser.parse_args()
    if not options.table:
        benches = [Bench(model, options.out) for model in options.models]
        for budgets in (BUDGETS[:2], FINER, BUDGETS[2:]):
            for bench in benches:
                bench.rows(budgets)
    rows = rows_of(options.out)
    files.write_json(options.out / "table.json", rows)
    text = "\n".join(table(rows))
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
