"""Spectrum: ridge regression of all past full steps on Chebyshev polynomials, at gaps that grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from relcache.bench.rivals.base import Options
from relcache.forecasters.expansion import Expansion
from relcache.method import Method
from relcache.schedules import Plan
from relcache_rivals.equations.base import Equation
from relcache_rivals.equations.outputs import HistoryForecaster, OfOutput

WARMUP, LEAST_PUBLISHED = 5, 10  # full steps at the beginning, and the least number of full steps that authors show
ALPHAS = [index / 20 for index in range(1001)]  # growths of the gap tried for a number of full steps: 0 to 50


@dataclass(frozen=True)
class ChebyshevRidge(HistoryForecaster):
    """`H(n) = T(τ) (XᵀX + λI)⁻¹ Xᵀ H`: ridge regression on `T_0 … T_m` over the outputs H of all full steps.

    τ maps the steps 0 to `total_steps` to [-1, 1], and X has the row `T(τ)` of each full step. The result is mixed with
    the line through the last two full steps: `weight · Chebyshev + (1 - weight) · line`.
    """

    total_steps: int
    degree: int = 4
    ridge: float = 0.1
    weight: float = 1.0

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        def rows(numbers: Sequence[int]) -> np.ndarray:
            return chebyshev.chebvander(2 * np.asarray(numbers, np.float64) / self.total_steps - 1, self.degree)

        design = rows(steps)
        square = design.T @ design + self.ridge * np.eye(self.degree + 1)
        mixed = self.weight * (rows([step]) @ np.linalg.solve(square, design.T))[0]
        line = Expansion(1).coefficients(steps, step)
        mixed[0] += (1 - self.weight) * (1 + sum(line))
        mixed[1 : len(line) + 1] -= (1 - self.weight) * np.asarray(line)
        return mixed.tolist()


@dataclass(frozen=True)
class Spectrum(Equation):
    """Spectrum on the last block's output, as in the authors' program.

    Source: arXiv 2603.01623 and the README and options of github.com/hanjq17/Spectrum (MIT). Defaults: degree 4,
    λ = 0.1, 5 full steps of warm-up, first window 2. The paper has weight 1; the README recommends 0.5 to 1.

    A step is full if it is the window's last, and each full step widens the window by α. α = 0.75 gives 14 full steps
    of 50, and α = 3 gives 10.

    Our reading: α is the middle one of those that give the number wanted. If none does, a plan with too many full steps
    leaves out the last ones. Below 10 full steps, which the authors do not show, the warm-up is 2, which is better
    there; with more than every second step it is longer.
    """

    weight: float = 1.0
    degree: int = 4
    ridge: float = 0.1
    source: ClassVar[str] = "arXiv 2603.01623"
    warmup: ClassVar[int] = 2

    def method(self, options: Options, steps: int) -> Method:
        forecaster = ChebyshevRidge(steps, self.degree, self.ridge, self.weight)
        plan = window_plan(steps, int(options["full_steps"]))
        return Method(OfOutput(forecaster), Plan(plan), name=self.name, granularity="stack")


def windows(total: int, alpha: float, warmup: int = 5, window: float = 2.0) -> tuple[int, ...]:
    """Return the full steps of `total` with a window that begins at `window` and grows by `alpha`."""
    full, cached = list(range(min(warmup, total))), 0
    for step in range(warmup, total):
        if (cached + 1) % math.floor(window) == 0:
            full.append(step)
            cached, window = 0, round(window + alpha, 3)
        else:
            cached += 1
    return tuple(full)


@lru_cache
def window_plan(total: int, full_steps: int) -> tuple[int, ...]:
    """Return the plan with exactly `full_steps` of `total` full steps."""
    warmup = WARMUP if full_steps >= LEAST_PUBLISHED else min(2, max(1, full_steps - 1))
    if full_steps > len(windows(total, 0.0, warmup)):  # more than every second step: only a longer warm-up has as many
        warmup = next(first for first in range(warmup, total + 1) if len(windows(total, 0.0, first)) >= full_steps)
    plans = [windows(total, alpha, warmup) for alpha in ALPHAS]
    exact = [plan for plan in plans if len(plan) == full_steps]
    if not exact:
        return min((plan for plan in plans if len(plan) > full_steps), key=len)[:full_steps]
    return exact[(len(exact) - 1) // 2]
