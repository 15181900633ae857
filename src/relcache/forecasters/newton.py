"""Newton: extrapolate the polynomial through the last full steps at their true positions."""

from __future__ import annotations

from dataclasses import dataclass

from relcache.forecasters.base import LadderForecaster
from relcache.forecasters.expansion import Expansion


@dataclass(frozen=True)
class Newton(LadderForecaster):
    """`O[t_0] + (t - t_0) O[t_0, t_1] + (t - t_0)(t - t_1) O[t_0, t_1, t_2] + …` over the last m + 1 full steps.

    It is exact for polynomials of degree m with any gaps, at the cost of `Taylor`. Order 0 is reuse.

    Raises:
        ValueError: the order is negative.
    """

    order: int = 1

    def __post_init__(self) -> None:
        Expansion(self.order)

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, "newton")
