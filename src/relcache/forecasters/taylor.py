"""Taylor: the expansion that TaylorSeer publishes."""

from __future__ import annotations

from dataclasses import dataclass

from relcache.expansion import Expansion
from relcache.forecasters.base import LadderForecaster


@dataclass(frozen=True)
class Taylor(LadderForecaster):
    """`O(t-k) = O(t) + Σ_{i=1..m} k^i / i! · D_i(t)`, with `D_0 = O` and `D_i(t) = (D_{i-1}(t) - D_{i-1}(t+N)) / N`.

    N is the gap at the full step where the difference is taken, as in the authors' code; with equal gaps that is
    `Δ^i_N O(t) / N^i`. `Newton` is the form that knows the true positions. Order 0 is reuse.

    Source: TaylorSeer, arXiv 2503.06923.

    Raises:
        ValueError: a negative order.
    """

    order: int = 1

    def __post_init__(self) -> None:
        Expansion(self.order)

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, "taylor")
