"""Linear: add the last difference of outputs, scaled by the distance and a constant weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relcache.checks import check_number
from relcache.forecasters.base import LadderForecaster
from relcache.forecasters.expansion import Expansion


@dataclass(frozen=True)
class Linear(LadderForecaster):
    """`O(t-k) = O(t) + w (k / N) Δ_N O(t)`, with w a constant. Source: FasterCache (arXiv 2410.19355), GOC.

    Its `expansion` is that of order 1, without w.

    Raises:
        ValueError: the weight is not a finite number.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_number("the weight of Linear", self.weight)

    @property
    def expansion(self) -> Expansion:
        return Expansion(1)

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        return [self.weight * c for c in super().coefficients(steps, step)]
