"""Taylor: the published expansion of TaylorSeer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relcache.checks import check_share
from relcache.forecasters.base import LadderForecaster
from relcache.forecasters.expansion import Expansion


@dataclass(frozen=True)
class Taylor(LadderForecaster):
    """`O(t-k) = O(t) + Σ_{i=1..m} k^i / i! · D_i(t)`, with `D_0 = O` and `D_i(t) = (D_{i-1}(t) - D_{i-1}(t+N)) / N`.

    N is the gap at the full step that adds the difference, as in the authors' code; with equal gaps D_i is
    `Δ^i_N O(t) / N^i`. `Newton` uses the true positions instead. Order 0 is reuse.

    With `reuse_first` a forecast needs only one full step, and reuses its output until a second one gives a difference.
    The paper computes the second step in full. `damping` multiplies the term of order i by `damping^(i-1)`, as
    differences of higher order contain more noise.

    Source: TaylorSeer, arXiv 2503.06923; `reuse_first` and `damping` are ours.

    Raises:
        ValueError: the order is negative, `reuse_first` is no bool, or the damping is not from 0 to 1.
    """

    order: int = 1
    reuse_first: bool = False
    damping: float = 1.0

    def __post_init__(self) -> None:
        Expansion(self.order)
        if not isinstance(self.reuse_first, bool):
            raise ValueError(f"reuse_first of Taylor is true or false, got {self.reuse_first!r}")
        check_share("the damping of Taylor", self.damping)

    @property
    def full_steps_needed(self) -> int:
        return 1 if self.reuse_first else super().full_steps_needed

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, "taylor")

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        plain = super().coefficients(steps, step)
        return [value * self.damping**power for power, value in enumerate(plain)] if self.damping != 1 else plain
