"""Forecasters of the last block's output, and from all past full steps instead of a few.

A unit of blocks has their change (output minus input) as its output. The papers forecast the last block's output.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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

    @property
    def full_steps_needed(self) -> int:
        return 1

    @abstractmethod
    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        """Return the weight of each full step's output, newest first."""

    def update(self, state: History | None, steps: Sequence[int], input: Tensor, output: Tensor) -> History:
        return (output.clone(), *(state or ()))[: len(steps)]

    def forecast(self, state: History, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        total = state[0] * coefficients[0]
        for output, weight in zip(state[1:], coefficients[1:], strict=False):
            total = total + output * weight
        return Forecast(total.to(state[0].dtype))


@dataclass(frozen=True)
class OfOutput(Forecaster):
    """Forecasts the output of blocks, input plus change, by another forecaster; returns it minus the present input."""

    inner: Forecaster

    @property
    def expansion(self) -> Expansion:
        return self.inner.expansion

    @property
    def full_steps_needed(self) -> int:
        return self.inner.full_steps_needed

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        return self.inner.coefficients(steps, step)

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        return self.inner.may_stray(steps, coefficients)

    def update(self, state: Any, steps: Sequence[int], input: Tensor, output: Tensor) -> Any:
        return self.inner.update(state, steps, input, input + output)

    def forecast(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return _minus(self.inner.forecast(state, coefficients, input), input)

    def forecast_far(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return _minus(self.inner.forecast_far(state, coefficients, input), input)


def _minus(forecast: Forecast, input: Tensor) -> Forecast:
    return forecast._replace(output=forecast.output - input)
