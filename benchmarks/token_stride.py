"""Measure the error of sampled tokens: the movement of a module's input over some tokens against that over all.

    python benchmarks/token_stride.py --out benchmarks/results/token-stride.json

RFE weighs a step by ‖I(t-k) - I(t)‖ / ‖Δ_N I‖. Both norms run over the same tokens, so only tokens that move unlike the
rest cause an error. Each shipped model runs once with full compute, with full steps 0, 1, 1 + N, … assumed. The table
has the relative error of the ratio over all modules, samples and steps between. The change that a forecast adds is
proportional to the ratio, so it has the same relative error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from shared import about, one_batch, parser_for
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.forecasters.base import Forecast, Forecaster
from relcache.forecasters.expansion import Expansion, norm_l2, subsample
from relcache.schedules import Always, Interval

STRIDES = (3, 5, 11, 23)
MODELS = ("dit-fashion-mnist", "small-flux", "small-video")


class Trail(NamedTuple):
    """The inputs at the last two full steps, and the relative errors by stride."""

    now: Tensor
    before: Tensor | None
    errors: dict[int, list[Tensor]]


@dataclass(frozen=True)
class Probe(Forecaster):
    """A forecaster that forecasts nothing and records the error of sampled tokens."""

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
        raise TypeError("a probe forecasts nothing: use the schedule Always")


def ratio(input: Tensor, now: Tensor, before: Tensor, stride: int) -> Tensor:
    """Return ‖I(t-k) - I(t)‖ / ‖Δ_N I‖ of each sample, (samples, 1, …)."""
    input, now, before = (subsample(value, stride) for value in (input, now, before))
    return norm_l2(input - now, "sample") / norm_l2(now - before, "sample")


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--interval", type=int, default=4)
    options = parser.parse_args()
    probe = relcache.Method(Probe(Interval(options.interval)), Always(), name="probe")
    rows = []
    for model in MODELS:
        pipeline, sample = one_batch(model, options.steps, range(options.samples), "cpu", "float32")
        with relcache.enable(pipeline, probe) as handle:
            sample()
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
        files.write_json(options.out, {"about": about(options), "rows": rows})


if __name__ == "__main__":
    main()
