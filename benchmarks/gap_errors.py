"""Find the source of the default's error: the interpolation between full steps, or full steps at wrong samples.

    python benchmarks/gap_errors.py --out benchmarks/results/gap-errors.json

It takes the default's plans, 14 and 8 full steps of 50, on 32 samples. For each there is PSNR in dB to full compute,
of the default itself and of pictures made with the **exact** outputs at full steps. In between these have Lagrange
polynomials of degree 1 to 3. Then there are relative errors by full step: of the sample at which the transformer is
called, of the corrected sample, and of the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared import one_batch, parser_for
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr
from relcache.correctors.replay import lagrange
from relcache.engine.patch import Patch

FIRST_SEED, SAMPLES, STEPS, BUDGETS = 20_000, 32, 50, (14, 8)


@contextmanager
def updates(scheduler: Any, replacements: Sequence[Tensor] | None = None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the output and sample of each update; `replacements` take the place of the outputs."""
    recorded: list[tuple[Tensor, Tensor]] = []

    def step(original: Any, output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if replacements is not None:
            output = replacements[len(recorded)]
        recorded.append((output.clone(), sample.clone()))
        return original(output, timestep, sample, *args, **kwargs)

    patch = Patch()
    patch.swap(scheduler, "step", step)
    try:
        yield recorded
    finally:
        patch.restore()


@contextmanager
def samples_of_updates(pipe: Any) -> Iterator[list[Tensor]]:
    """Record the samples of the scheduler's own updates, corrected ones included."""
    kind, recorded = type(pipe.scheduler), []
    own = kind.step

    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is pipe.scheduler:
            recorded.append(sample.clone())
        return own(self, model_output, timestep, sample, *args, **kwargs)

    kind.step = step
    try:
        yield recorded
    finally:
        kind.step = own


def between(exact: Sequence[Tensor], plan: Sequence[int], degree: int) -> list[Tensor]:
    """Interpolate the outputs of all steps from the exact ones of the plan; after its end, extrapolate the last two."""
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
    """Return ‖value - exact‖ / ‖exact‖, the mean over the samples."""
    distance, whole = ((each.float().flatten(1).norm(dim=1)) for each in (value - exact, exact))
    return round(float((distance / whole).mean()), 5)


def main() -> None:
    """Measure the three shipped models."""
    out, found = parser_for(__doc__, out_required=True).parse_args().out, {}
    for task in SMALL.values():
        pipe, sample = one_batch(task.model, STEPS, range(FIRST_SEED, FIRST_SEED + SAMPLES))
        with updates(pipe.scheduler) as exact:
            reference = sample()
        for full in BUDGETS:
            with relcache.enable(pipe, full_steps=full) as handle, updates(pipe.scheduler) as handed:
                made = sample()
                plan = handle.full_steps
            with samples_of_updates(pipe) as corrected, relcache.enable(pipe, full_steps=full):
                sample()
            row: dict[str, Any] = {"plan": plan, "default": float(psnr(made, reference).mean())}
            for degree in (1, 2, 3):
                with updates(pipe.scheduler, between([output for output, _ in exact], plan, degree)):
                    ideal = sample()
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
            line = ", ".join(f"{name} {value:.1f}" for name, value in row.items() if isinstance(value, float))
            print(f"{task.model}, {full} of {STEPS}: {line}", flush=True)


if __name__ == "__main__":
    main()
