"""Where the default's error comes from: the line between two full steps, or full steps at samples that are off.

    python benchmarks/gap_errors.py --out benchmarks/results/gap-errors.json

At the plans of the default, 14 and 8 full steps of 50, on 32 samples: PSNR in dB to full compute of pictures made with
the **exact** outputs at full steps, and Lagrange polynomials of degree 1 to 3 through them in between; and of the
default itself. Then by full step, as shares of the exact sample's and output's norms: how far the sample is off at
which the transformer is called, how far after the correction, and how far its output is off.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.comparison.arguments import call_options
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.correctors.replay import lagrange
from relcache.engine.patch import Patch

FIRST_SEED, SAMPLES, STEPS, BUDGETS = 20_000, 32, 50, (14, 8)


@contextmanager
def updates(scheduler: Any, given: Sequence[Tensor] | None = None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The output and sample of each update; with `given`, the updates are made with those outputs instead."""
    seen: list[tuple[Tensor, Tensor]] = []

    def step(original: Any, output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if given is not None:
            output = given[len(seen)]
        seen.append((output.clone(), sample.clone()))
        return original(output, timestep, sample, *args, **kwargs)

    patch = Patch()
    patch.swap(scheduler, "step", step)
    try:
        yield seen
    finally:
        patch.restore()


def between(exact: Sequence[Tensor], plan: Sequence[int], degree: int) -> list[Tensor]:
    """The outputs of all steps by polynomials through the exact ones of the plan; behind its end through the last."""
    made = []
    for step, output in enumerate(exact):
        after = [full for full in plan if full >= step]
        before = [full for full in reversed(plan) if full < step]
        if step in plan:
            made.append(output)
            continue
        ahead = after[: max(1, degree - 1)] if after else []
        nodes = [*ahead, *before[: degree + 1 - len(ahead)]] if after else before[:2]
        weights = lagrange(nodes, step)
        made.append(sum((weight * exact[node] for weight, node in zip(weights, nodes, strict=True)), 0 * output))
    return made


def off(value: Tensor, exact: Tensor) -> float:
    """‖value - exact‖ / ‖exact‖, mean over the samples."""
    distance, whole = ((each.float().flatten(1).norm(dim=1)) for each in (value - exact, exact))
    return round(float((distance / whole).mean()), 5)


def main() -> None:
    """Measure the three shipped models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out, found = parser.parse_args().out, {}
    for task in SMALL.values():
        pipe = load_pipeline(task.model)
        seeds = [FIRST_SEED + index for index in range(SAMPLES)]
        sampler = Sampler(pipe, STEPS, SAMPLES, call_options(task.model, None, None, None, []))
        with updates(pipe.scheduler) as exact:
            reference = sampler.call(seeds, task.conditions(seeds))
        for full in BUDGETS:
            with relcache.enable(pipe, full_steps=full) as handle, updates(pipe.scheduler) as handed:
                made = sampler.call(seeds, task.conditions(seeds))
                plan = handle.full_steps
            with _inside(pipe) as corrected, relcache.enable(pipe, full_steps=full):
                sampler.call(seeds, task.conditions(seeds))
            row: dict[str, Any] = {"plan": plan, "default": float(psnr(made, reference).mean())}
            for degree in (1, 2, 3):
                with updates(pipe.scheduler, between([output for output, _ in exact], plan, degree)):
                    ideal = sampler.call(seeds, task.conditions(seeds))
                row[f"exact outputs, degree {degree}"] = float(psnr(ideal, reference).mean())
            row["steps"] = {
                step: {
                    "sample": off(handed[step][1], exact[step][1]),
                    "corrected": off(corrected[step], exact[step][1]),
                    "output": off(handed[step][0], exact[step][0]),
                }
                for step in plan
            }
            found[f"{task.model}, {full} of {STEPS}"] = row
            files.write_json(out, found)
            told = ", ".join(f"{name} {value:.1f}" for name, value in row.items() if isinstance(value, float))
            print(f"{task.model}, {full} of {STEPS}: {told}", flush=True)


@contextmanager
def _inside(pipe: Any) -> Iterator[list[Tensor]]:
    """The samples that the scheduler's own updates are given, corrected ones included."""
    kind, seen = type(pipe.scheduler), []
    own = kind.step

    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is pipe.scheduler:
            seen.append(sample.clone())
        return own(self, model_output, timestep, sample, *args, **kwargs)

    kind.step = step
    try:
        yield seen
    finally:
        kind.step = own


if __name__ == "__main__":
    main()
