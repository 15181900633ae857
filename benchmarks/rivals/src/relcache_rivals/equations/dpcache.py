"""DPCache: full steps by dynamic programming over costs measured on calibration samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from relcache.bench.rivals.base import Options
from relcache.bench.sampling.batches import Sampler
from relcache.forecasters import Taylor
from relcache.method import Method
from relcache.schedules import Plan
from relcache_rivals.equations.base import Equation, plan_of
from relcache_rivals.equations.outputs import OfOutput
from relcache_rivals.equations.recording import record, values_of

FIRST = 3  # full steps at the beginning of every plan


@dataclass(frozen=True)
class DPCache(Equation):
    """DPCache: TaylorSeer of order 2 on the last block's output, at the steps of least cost.

    Source: arXiv 2602.22654, by public notes of it. Defaults: order 2, the first three steps full, and about 10
    calibration samples; one is said to suffice.

    The cost of skipping from full step j to k after the full step i is `C[i, j, k] = Σ_τ ‖h_τ - h_τ(i, j)‖₁` over
    τ = j + 1 … k, in our order of time. A plan's cost is the sum over its full steps, and to the end of the run.

    Our reading: order 2 needs a third full step, which the notes do not name. We take the last of the first three steps
    that is before i. The paper's recurrence remembers one predecessor of each full step, so it is not exact for costs
    of three steps; ours is exact. A plan for each number of full steps is found at once.
    """

    order: int = 2
    source: ClassVar[str] = "arXiv 2602.22654"
    warmup: ClassVar[int] = FIRST

    def method(self, options: Options, steps: int) -> Method:
        return Method(OfOutput(Taylor(self.order)), Plan(plan_of(options, steps)), name=self.name, granularity="stack")

    def calibrate(self, sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> dict[str, Any]:
        values = values_of(record(sampler, seeds, conditions))
        return {"plans": best_plans(path_costs(values, Taylor(self.order)))}


def path_costs(values: Tensor, forecaster: Taylor) -> np.ndarray:
    """Return `C[i, j, k]`, (steps, steps, steps + 1), from a full run's `values`, (steps, values).

    Index k = steps is the end of the run. Only i < j < k is filled; the others are infinite.
    """
    total = len(values)
    costs = np.full((total, total, total + 1), np.inf)
    for j in range(1, total):
        for i in range(j):
            steps = [j, i, *([min(i, FIRST) - 1] if i else [])]
            state = None
            for index in reversed(range(len(steps))):
                one = values[steps[index]][None]
                state = forecaster.update(state, steps[index:], one, one)
            assert state is not None
            missing = [
                (values[step] - forecaster.forecast(state, forecaster.coefficients(steps, step), values[:1]).output[0])
                .abs().mean().item()
                for step in range(j + 1, total)
            ]  # fmt: skip
            summed = np.cumsum([*missing, 0.0])  # nothing is missed at the end itself
            costs[i, j, j + 1 :] = summed
    return costs


def best_plans(costs: np.ndarray, first: int = FIRST) -> list[list[int]]:
    """Return the cheapest plan of each number of full steps, from `first` to all, all with the first steps full.

    A plan `0, 1, …, first - 1, …` costs `Σ costs[i, j, k]` over its successive full steps i, j, k from the first ones
    on; after the last two comes k = steps. The search is exact: it keeps the best plan for each last two full steps.
    """
    total = len(costs)
    cheapest = np.full((total, total), np.inf)
    cheapest[first - 2, first - 1] = 0.0
    before: list[np.ndarray] = []  # for each number of full steps, the step before each last two
    plans = []
    for count in range(first, total + 1):
        ends = cheapest + costs[:, :, total]
        i, j = divmod(int(np.argmin(ends)), total)
        plan = [j, i]
        for earlier in reversed(before):
            plan.append(int(earlier[plan[-1], plan[-2]]))
        plans.append([*range(first - 2), *reversed(plan)])
        if count < total:
            paths = cheapest[:, :, None] + costs[:, :, :total]
            before.append(paths.argmin(0))
            cheapest = paths.min(0)
    return plans
