"""MeanCache: the average velocity of an interval from the last ones, at the most stable steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from relcache.bench.rivals.base import Options
from relcache.bench.sampling.batches import Sampler
from relcache.method import Method
from relcache.schedules import Plan
from relcache_rivals.equations.base import Equation, plan_of
from relcache_rivals.equations.outputs import HistoryForecaster, OfOutput
from relcache_rivals.equations.recording import record_predictions

SPANS = (1, 2, 3, 4, 5)  # steps that a quotient may span; over one step it is 0, which is reuse


@dataclass(frozen=True)
class MeanVelocity(HistoryForecaster):
    """`v(n) = v(n-1) + δ_n / Δ · (u - v(r))`, with the average `u = Σ δ_m v(m) / Δ` over steps m = r … n - 1.

    δ_m is the length of step m, and Δ the sum of those from r to n - 1. `(u - v(r)) / Δ` is MeanFlow's derivative of
    the average velocity, without a Jacobian-vector product. A skipped step uses the velocities of skipped ones, too.
    The authors' program computes the same.

    Attributes:
        lengths: δ of each step.
        spans: for each step, the number of steps from r on.
    """

    lengths: tuple[float, ...]
    spans: tuple[int, ...]

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        oldest = steps[-1]
        known = {full: np.eye(len(steps))[index] for index, full in enumerate(steps)}
        for n in range(oldest, step + 1):
            if n not in known:
                first = max(oldest, n - self.spans[n])
                known[n] = next_velocity([known[m] for m in range(first, n)], self.lengths[first : n + 1])
        return known[step].tolist()


def next_velocity(velocities: Sequence[Any], lengths: Sequence[float]) -> Any:
    """Return a step's velocity from those of the steps before; `lengths` has the step's own last."""
    *past, own = lengths
    average = sum(length * velocity for length, velocity in zip(past, velocities, strict=True)) / sum(past)
    return velocities[-1] + (average - velocities[0]) * (own / sum(past))


@dataclass(frozen=True)
class MeanCache(Equation):
    """MeanCache: average velocities by a difference quotient, at the steps of the peak-suppressed shortest path.

    Source: arXiv 2601.19961, its project page, and the tables of github.com/UnicomAI/MeanCache (Apache 2.0). A path
    goes from the first step to the last, with a budget of steps. An edge from t to s costs `C^γ`, where
    `C = mean |u(t, s) - û(t, s)|` is the error of its average velocity, for the best span of 1 to 5 steps.

    Our reading: the equation is of the model's output, as are the costs. We apply it to the last block's output, from
    which the last layer computes the model's. γ is 2, as in public ports. A skipped step uses the velocities of skipped
    ones, as the tables' spans imply. Lengths of steps are differences of flow matching's σ. The paper treats no other
    schedulers; with these all lengths are 1.
    """

    gamma: float = 2.0
    source: ClassVar[str] = "arXiv 2601.19961"
    warmup: ClassVar[int] = 2

    def method(self, options: Options, steps: int) -> Method:
        plan = plan_of(options, steps)
        by_edge = options.get("edge_spans", [[1] * steps] * steps)
        spans, lengths = [1] * steps, tuple(options.get("lengths", [1.0] * steps))
        for start, end in zip(plan, [*plan[1:], steps], strict=True):
            spans[start:end] = [by_edge[start][min(end, steps - 1)]] * (end - start)
        return Method(OfOutput(MeanVelocity(lengths, tuple(spans))), Plan(plan), name=self.name, granularity="stack")

    def calibrate(self, sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> dict[str, Any]:
        values = record_predictions(sampler, seeds, conditions)
        lengths = step_lengths(sampler.pipeline.scheduler, len(values))
        costs, spans = edge_costs(values, lengths)
        return {"plans": shortest_paths(costs**self.gamma), "edge_spans": spans.tolist(), "lengths": lengths}


def step_lengths(scheduler: Any, steps: int) -> list[float]:
    """Return the length of each step in flow matching's σ; for other schedulers, 1 for each."""
    sigmas = getattr(scheduler, "sigmas", None)
    if "FlowMatch" not in type(scheduler).__name__ or sigmas is None or len(sigmas) != steps + 1:
        return [1.0] * steps
    return (torch.as_tensor(sigmas[:-1]) - torch.as_tensor(sigmas[1:])).tolist()


def edge_costs(velocities: Tensor, lengths: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least error of the average velocity on each edge t → s, and the span that gives it.

    `velocities` are those of a full run, (steps, values). Both results are (steps, steps), filled for t < s.
    """
    total = len(velocities)
    costs, spans = np.full((total, total), np.inf), np.ones((total, total), int)
    for t in range(total - 1):
        for span in SPANS:
            used = list(velocities[max(0, t + 1 - span) : t + 1])
            error = torch.zeros_like(velocities[0])
            for s in range(t + 1, total):
                cost = error.abs().mean().item() / sum(lengths[t:s])
                if cost < costs[t, s]:
                    costs[t, s], spans[t, s] = cost, span
                used.append(next_velocity(used[-span:], lengths[s - len(used[-span:]) : s + 1]))
                error += (velocities[s] - used[-1]) * lengths[s]
    return costs, spans


def shortest_paths(costs: np.ndarray) -> list[list[int]]:
    """Return the cheapest path from the first step to the last, for each number of steps from 2 to all."""
    total = len(costs)
    cheapest, before = costs[0].copy(), [np.zeros(total, int)]
    paths = []
    for _ in range(2, total + 1):
        path = [total - 1]
        for earlier in reversed(before):
            path.append(int(earlier[path[-1]]))
        paths.append(path[::-1])
        through = cheapest[:, None] + costs
        before.append(through.argmin(0))
        cheapest = through.min(0)
    return paths
