"""A forecaster that keeps the outputs of all past full steps, for methods that weigh more than a few of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from relcache.forecasters.base import Forecast, Forecaster
from relcache.forecasters.expansion import Expansion

History = tuple[Tensor, ...]
"""The outputs (batch, …) of full steps, newest first."""
MOST = 100  # outputs kept; no published plan has as many full steps


class HistoryForecaster(Forecaster):
    """A weighted sum of the outputs of all past full steps."""

    reads_input: ClassVar[bool] = False

    @property
    def expansion(self) -> Expansion:
        return Expansion(MOST - 1)  # so many earlier full steps are passed to `coefficients`

    @abstractmethod
    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        """Return the weight of each full step's output, newest first."""

    def update(self, state: History | None, steps: Sequence[int], input: Tensor, output: Tensor) -> History:
        return (output.clone(), *(state or ()))[: len(steps)]

    def forecast(self, state: History, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        total = state[0] * coefficients[0]
        for output, weight in zip(state[1:], coefficients[1:], strict=True):
            total = total + output * weight
        return Forecast(total.to(state[0].dtype))
