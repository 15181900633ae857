"""Test whether the full steps of other caches explain their pictures, by relcache's own forecasters at the same steps.

    python benchmarks/peer_steps.py --out benchmarks/results/peer-steps.json

On the shipped DiT each cache is steered to about 14 full steps of 50, and its full steps are recorded. Then reuse
and Taylor forecast the stack at these steps. FirstBlockCache and DBCache reuse the sum of the blocks after the first.
If they run correctly, they come out near reuse at the stack.
"""

from __future__ import annotations

from typing import Any

from shared import about, parser_for
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.comparison.arguments import call_options, conditions_for
from relcache.bench.comparison.contestants import budgeted, sample
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import TriedThresholds, calibration_seeds
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline

FORECASTERS = {"reuse": relcache.Reuse(), "taylor, m=1": relcache.Taylor(1), "taylor, m=2": relcache.Taylor(2)}


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--nfc", type=int, default=14)
    options = parser.parse_args()
    pipeline = load_pipeline(DEFAULT_MODEL, "cpu", "float32")
    sampler = Sampler(pipeline, options.steps, options.samples, call_options(DEFAULT_MODEL, None, None, None, []))
    seeds, others = list(range(options.samples)), calibration_seeds(4)
    conditions, their = (conditions_for(DEFAULT_MODEL, None, each) for each in (seeds, others))
    reference = sampler.call(seeds, conditions)

    def quality(images: Tensor) -> float:
        return float(psnr(images, reference).mean())

    rows: list[dict[str, Any]] = []
    print(f"| cache | full steps | PSNR | {' | '.join(FORECASTERS)} |\n| --- | --- | --- | --- | --- | --- |")
    for rival in all_rivals().values():
        if rival.group not in ("diffusers", "cache-dit") or rival.values or rival.unfit(pipeline):
            continue
        config = budgeted(
            {"method": rival.name}, [options.nfc], sampler, others, their, lambda *_: None, TriedThresholds()
        )[options.nfc]
        made = sample(config, sampler, seeds, conditions)
        full = made.report["full_steps"]
        row = {"peer": rival.title, "full_steps": full, "psnr": quality(made.images)}
        for name, forecaster in FORECASTERS.items():
            own = relcache.Method(forecaster, relcache.Plan(full), name=name, granularity="stack")
            row[name] = quality(sampler.run(own, seeds, conditions).images)
        rows.append(row)
        numbers = " | ".join(f"{row[name]:.2f}" for name in ("psnr", *FORECASTERS))
        print(f"| {rival.title} | {', '.join(map(str, full))} | {numbers} |", flush=True)
    if options.out:
        files.write_json(options.out, {"about": about(options), "rows": rows})


if __name__ == "__main__":
    main()
