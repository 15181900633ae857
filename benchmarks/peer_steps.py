"""Whether the peers' pictures are what their full steps explain: relcache's own forecasters at the very same steps.

    python benchmarks/peer_steps.py --out benchmarks/results/peer-steps.json

On the shipped DiT every peer is held to some 14 full steps of 50, and the steps that it computed are read off. Then
reuse and Taylor forecast what all blocks add together at these steps. FirstBlockCache and DBCache reuse what the blocks
behind the first add: if they are run as they should be, they come out near reuse at the stack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.comparison.asked import asked_of, call_options
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.calibration import Calibration, calibration_seeds
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache.bench.speed.contestants import Contestant, only_transformer, ours, peer_at
from relcache.bench.speed.peers import PEERS
from relcache.bench.speed.stopwatch import timed
from relcache.bench.speed.trial import FULL, Trial

FORECASTERS = {"reuse": relcache.Reuse(), "taylor, m=1": relcache.Taylor(1), "taylor, m=2": relcache.Taylor(2)}


def sampled(trial: Trial, contestant: Contestant) -> tuple[Tensor, list[int]]:
    """Pictures of the one batch, and the steps that were full."""
    pipeline = trial.sampler.pipeline
    with contestant.enabled(pipeline), timed(only_transformer(pipeline), trial.spec) as laps:
        images = trial.sampler.call(trial.seeds, trial.conditions)
    return images, [step for step, (_, full) in enumerate(laps.each) if full]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--nfc", type=int, default=14)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pipeline = load_pipeline(DEFAULT_MODEL, "cpu", "float32")
    sampler = Sampler(pipeline, options.steps, options.samples, call_options(DEFAULT_MODEL, None, None, None, []))
    trial, calibration = (
        Trial(sampler, seeds, asked_of(DEFAULT_MODEL, None, seeds))
        for seeds in (list(range(options.samples)), calibration_seeds(4))
    )
    reference = trial.run(FULL).images
    rows = []
    print(f"| peer | full steps | PSNR | {' | '.join(FORECASTERS)} |\n| --- | --- | --- | --- | --- | --- |")
    for peer in PEERS:
        contestant = peer_at(
            peer, options.nfc, options.steps, trial.spec,
            lambda one: round(calibration.run(one).full_share * options.steps, 6), Calibration(),
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
        about = {key: value for key, value in vars(options).items() if key != "out"}
        files.write_json(options.out, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
