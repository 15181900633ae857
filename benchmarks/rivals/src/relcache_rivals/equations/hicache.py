"""HiCache: scaled Hermite polynomials in place of TaylorSeer's monomials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from numpy.polynomial import hermite

from relcache.bench.rivals.base import Options
from relcache.bench.sampling.budgets import spacing_for
from relcache.forecasters.base import LadderForecaster
from relcache.forecasters.expansion import Expansion
from relcache.method import Method
from relcache.schedules import Interval
from relcache_rivals.equations.base import Equation


@dataclass(frozen=True)
class ScaledHermite(LadderForecaster):
    """`O(n) = O(n_0) + Σ_{i=1..m} H̃_i(n - n_0) / i! · D_i`, with `H̃_i(x) = σ^i H_i(σ x)`.

    H_i are the physicists' Hermite polynomials: `H_1 = 2x`, `H_2 = 4x² - 2`. D_i are TaylorSeer's differences per step,
    and x is a number of steps, as in TaylorSeer. At σ = 0.5 the slope is half of TaylorSeer's: `H̃_1(x) = x / 2`.
    """

    order: int = 2
    sigma: float = 0.5

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order)

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        terms = len(super().coefficients(steps, step))
        if not terms:
            return []
        gap, ahead = steps[0] - steps[1], step - steps[0]
        return [
            scaled_hermite(i, ahead, self.sigma) / math.factorial(i) / gap**i  # a stack's term i is gap^i D_i
            for i in range(1, terms + 1)
        ]


def scaled_hermite(order: int, x: float, sigma: float) -> float:
    """Return `H̃(x) = σ^order H_order(σ x)`."""
    return float(sigma**order * hermite.hermval(sigma * x, [0.0] * order + [1.0]))


@dataclass(frozen=True)
class HiCache(Equation):
    """HiCache on the modules that TaylorSeer forecasts, at a fixed interval.

    Source: arXiv 2508.16984. Public defaults: σ = 0.5, order 2, the interval of TaylorSeer, a warm-up of 3 full steps.

    Our reading: a fixed interval reaches an exact number of full steps with another first full step after the warm-up.
    """

    order: int = 2
    sigma: float = 0.5
    source: ClassVar[str] = "arXiv 2508.16984"
    warmup: ClassVar[int] = 3

    def method(self, options: Options, steps: int) -> Method:
        spacing = spacing_for(int(options["full_steps"]), steps, None, self.warmup)
        return Method(ScaledHermite(self.order, self.sigma), Interval(warmup=self.warmup, **spacing), name=self.name)
