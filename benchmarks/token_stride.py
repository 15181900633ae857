"""How far a sample of tokens strays: the movement of a module's input over every so manieth token against over all.

    python benchmarks/token_stride.py --out benchmarks/results/token-stride.json

RFE weighs a step by ‖I(t-k) - I(t)‖ / ‖Δ_N I‖. Both norms are taken over the same tokens, so that the ratio of a sample
is off only as far as its tokens move otherwise than the rest. Recorded in a run with full compute of each shipped
model, at full steps 0, 1, 1 + N, …: the relative error of that ratio over all modules, samples and steps between. What
a forecast adds to the last full output is proportional to the ratio, so this share of it is the forecast's error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.comparison.asked import asked_of, call_options
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.forecasters.base import Forecast, Forecaster
from relcache.forecasters.expansion import Expansion, norm_l2, subsample
from relcache.schedules import Always, Interval

STRIDES = (3, 5, 11, 23)
MODELS = ("dit-fashion-mnist", "small-flux", "small-video")


class Trail(NamedTuple):
    """The inputs at the last two full steps, and relative errors by stride."""

    now: Tensor
    before: Tensor | None
    errors: dict[int, list[Tensor]]


@dataclass(frozen=True)
class Probe(Forecaster):
    """Forecasts nothing, and records how far sampled tokens stray."""

    schedule: Interval

    @property
    def expansion(self) -> Expansion:
        return Expansion(1)

    def update(self, state: Trail | None, steps: Sequence[int], input: Tensor, output: Tensor) -> Trail:
        if state is None:
            return Trail(input, None, {stride: [] for stride in STRIDES})
        if self.schedule.wants_full(None, steps[0], None):
            return Trail(input, state.now, state.errors)
        assert state.before is not None
        whole = ratio(input, state.now, state.before, 1)
        for stride in STRIDES:
            found = ratio(input, state.now, state.before, stride) / whole - 1
            state.errors[stride].append(found[whole.isfinite() & (whole > 0)].abs())
        return state

    def forecast(self, state: Any, coefficients: Any, input: Tensor) -> Forecast:
        raise TypeError("a probe forecasts nothing: give it the schedule Always")


def ratio(input: Tensor, now: Tensor, before: Tensor, stride: int) -> Tensor:
    """‖I(t-k) - I(t)‖ / ‖Δ_N I‖ of each sample."""
    input, now, before = (subsample(value, stride) for value in (input, now, before))
    return norm_l2(input - now, "sample") / norm_l2(now - before, "sample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--interval", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    probe = relcache.Method(Probe(Interval(options.interval)), Always(), name="probe")
    seeds = list(range(options.samples))
    rows = []
    for model in MODELS:
        pipeline = load_pipeline(model, "cpu", "float32")
        with relcache.enable(pipeline, probe) as handle:
            Sampler(pipeline, options.steps, len(seeds), call_options(model, None, None, None, [])).call(
                seeds, asked_of(model, None, seeds)
            )
            trails = [state for *_, state in handle.states()]
        for stride in STRIDES:
            errors = torch.cat([error for trail in trails for error in trail.errors[stride]])
            quantiles = errors.double().quantile(torch.tensor([0.5, 0.99, 1.0], dtype=torch.float64)).tolist()
            rows.append(
                {"model": model, "stride": stride, "median": quantiles[0], "99 %": quantiles[1], "most": quantiles[2]}
            )
    print("| model | stride | median | 99 % | most |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['model']} | {row['stride']} | {row['median']:.2%} | {row['99 %']:.2%} | {row['most']:.2%} |")
    if options.out:
        about = {key: value for key, value in vars(options).items() if key != "out"}
        files.write_json(options.out, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
