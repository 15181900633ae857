"""Explain why RFE helps or hurts on a model: measure how constant s is and how right the extrapolated direction is.

    python benchmarks/relation.py --out benchmarks/results/relation.json

One run with full compute records the input I and output O of each module. For an interval N and each step k after a
full step, the table has medians over modules, samples and steps:

- the ratio of s at the step, ‖ΔO‖ / ‖ΔI‖, to s_N of the two full steps before;
- the cosine between the true change of the output and the first-order direction Δ_N O;
- three amounts of Δ_N O: RFE's, ‖I(t-k) - I(t)‖ / ‖Δ_N I‖, Taylor's, k / N, and the best one, the projection;
- the relative error that each amount leaves.
"""

from __future__ import annotations

import torch
from shared import parser_for
from torch import Tensor

from relcache.bench import files
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache.models import SPECS, spec_for

FIRST = 1  # the published phase: full steps 0, 1, 1 + N, 1 + 2N, …


@torch.no_grad()
def record(model_name: str, samples: int, steps: int, guidance: float) -> list[tuple[Tensor, Tensor]]:
    """Return the inputs and outputs of each module over a run with full compute, each (steps, rows, features)."""
    pipeline = load_pipeline(model_name, "cpu")
    units = spec_for(pipeline.transformer, SPECS).units(pipeline.transformer)
    features: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in units]

    def keep(index: int, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features[index][0].append(inputs[0].flatten(1))
        features[index][1].append(output.flatten(1))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, index=index: keep(index, inputs, output))
        for index, unit in enumerate(units)
        for module in unit.modules.values()
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in range(samples)]
    pipeline([i % 10 for i in range(samples)], guidance, generators, steps, output_type="pt")
    for hook in hooks:
        hook.remove()
    return [(torch.stack(inputs), torch.stack(outputs)) for inputs, outputs in features]


def measure(inputs: Tensor, outputs: Tensor, interval: int, k: int) -> dict[str, Tensor]:
    """Return the figures of one module at `k` steps after each full step, each (full steps, rows)."""
    full = torch.arange(FIRST + interval, len(inputs) - k, interval)
    change = outputs[full + k] - outputs[full]
    direction = outputs[full] - outputs[full - interval]
    moved = (inputs[full + k] - inputs[full]).norm(dim=-1)
    moved_before = (inputs[full] - inputs[full - interval]).norm(dim=-1)
    length, before = change.norm(dim=-1), direction.norm(dim=-1)
    best = (change * direction).sum(-1) / before**2
    amounts = {"rfe": moved / moved_before, "taylor": torch.full_like(best, k / interval), "best": best}
    errors = {
        f"error_{name}": (change - amount[..., None] * direction).norm(dim=-1) / length
        for name, amount in amounts.items()
    }
    return {
        "s_ratio": (length / moved) / (before / moved_before),
        "cosine": (change * direction).sum(-1) / (length * before),
        **{f"amount_{name}": amount for name, amount in amounts.items()},
        **errors,
    }


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--intervals", type=int, nargs="+", default=[4, 7, 9])
    options = parser.parse_args()

    features = record(options.model, options.samples, options.steps, options.guidance)
    spread = [
        (ratio.std(0) / ratio.mean(0)).mean().item()
        for ratio in (
            (outputs[1:] - outputs[:-1]).norm(dim=-1) / (inputs[1:] - inputs[:-1]).norm(dim=-1)
            for inputs, outputs in features
        )
    ]
    print(
        f"relative standard deviation of s over the steps, mean of {len(spread)} modules: "
        f"{sum(spread) / len(spread):.1%}"
    )
    rows = []
    for interval in options.intervals:
        for k in range(1, interval):
            found = [measure(inputs, outputs, interval, k) for inputs, outputs in features]
            row = {key: torch.cat([one[key].flatten() for one in found]).median().item() for key in found[0]}
            rows.append({"interval": interval, "k": k, **row})
    keys = list(rows[0])
    print("| " + " | ".join(keys) + " |\n|" + " --- |" * len(keys))
    for row in rows:
        print("| " + " | ".join(f"{row[key]:.3g}" for key in keys) + " |")
    if options.out:
        about = {name: getattr(options, name) for name in ("model", "samples", "steps", "guidance")}
        files.write_json(options.out, {"about": about, "s_relative_deviation_by_module": spread, "rows": rows})


if __name__ == "__main__":
    main()
