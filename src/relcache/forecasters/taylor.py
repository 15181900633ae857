"""Taylor: the expansion that TaylorSeer publishes."""

from __future__ import annotations

from dataclasses import dataclass

from relcache.expansion import Expansion
from relcache.forecasters.base import LadderForecaster


@dataclass(frozen=True)
class Taylor(LadderForecaster):
    """`O(t-k) = O(t) + Σ_{i=1..m} k^i / i! · Δ^i_N O(t) / N^i`. Source: TaylorSeer, arXiv 2503.06923.

    All differences are divided by the last gap N, also where the gaps differ: the published form. `Newton` is the
    form that knows the true positions. Order 0 is reuse.

    Raises:
        ValueError: a negative order.
    """

    order: int = 1

    def __post_init__(self) -> None:
        Expansion(self.order)

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, "taylor")
