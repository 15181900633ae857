"""Test whether the peers' full steps explain their pictures, by relcache's own forecasters at the same steps.

    python benchmarks/peer_steps.py --out benchmarks/results/peer-steps.json

On the shipped DiT each peer is steered to about 14 full steps of 50, and its computed steps are recorded. Then reuse
and Taylor forecast the stack at these steps. FirstBlockCache and DBCache reuse the sum of the blocks after the first.
If they run correctly, they come out near reuse at the stack.
"""

from __future__ import annotations

from shared import about, parser_for
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.comparison.arguments import call_options, conditions_for
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import TriedThresholds, calibration_seeds
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache.bench.speed.contestants import Contestant, only_transformer, ours, peer_at
from relcache.bench.speed.peers import PEERS
from relcache.bench.sampling.stopwatch import timed
from relcache.bench.speed.trial import FULL, Trial

FORECASTERS = {"reuse": relcache.Reuse(), "taylor, m=1": relcache.Taylor(1), "taylor, m=2": relcache.Taylor(2)}


def sampled(trial: Trial, contestant: Contestant) -> tuple[Tensor, list[int]]:
    """Return the pictures of the one batch and the full steps."""
    pipeline = trial.sampler.pipeline
    with contestant.enabled(pipeline), timed(only_transformer(pipeline), trial.spec) as laps:
        images = trial.sampler.call(trial.seeds, trial.conditions)
    return images, [step for step, (_, full) in enumerate(laps.each) if full]


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--nfc", type=int, default=14)
    options = parser.parse_args()
    pipeline = load_pipeline(DEFAULT_MODEL, "cpu", "float32")
    sampler = Sampler(pipeline, options.steps, options.samples, call_options(DEFAULT_MODEL, None, None, None, []))
    trial, calibration = (
        Trial(sampler, seeds, conditions_for(DEFAULT_MODEL, None, seeds))
        for seeds in (list(range(options.samples)), calibration_seeds(4))
    )
    reference = trial.run(FULL).images
    rows = []
    print(f"| peer | full steps | PSNR | {' | '.join(FORECASTERS)} |\n| --- | --- | --- | --- | --- | --- |")
    for peer in PEERS:
        contestant = peer_at(
            peer, options.nfc, options.steps, trial.spec,
            lambda one: round(calibration.run(one).full_share * options.steps, 6), TriedThresholds(),
        )  # fmt: skip
        images, full = sampled(trial, contestant)
        row = {"peer": peer.name, "full_steps": full, "psnr": float(psnr(images, reference).mean())}
        for name, forecaster in FORECASTERS.items():
            own = relcache.Method(forecaster, relcache.Plan(full), name=name, granularity="stack")
            row[name] = float(psnr(sampled(trial, ours(name, own))[0], reference).mean())
        rows.append(row)
        numbers = " | ".join(f"{row[name]:.2f}" for name in ("psnr", *FORECASTERS))
        print(f"| {peer.name} | {', '.join(map(str, full))} | {numbers} |", flush=True)
    if options.out:
        files.write_json(options.out, {"about": about(options), "rows": rows})


if __name__ == "__main__":
    main()
