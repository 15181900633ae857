"""What every forecaster is. Knows nothing of schedules, models or the session.

A forecaster answers: what does a skipped module return? It holds options, never history. The history of one stream of
features is a `state`, which the session keeps: `update` takes the old one and returns the new one at a full step,
`forecast` reads it at a cached step. A state is made of tuples, lists and dictionaries (a NamedTuple, say), so that the
cache finds the tensors in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from relcache.expansion import Expansion, Ladder, weighted_sum


class Forecast(NamedTuple):
    """A forecast output, and for each sample what it fell back to: 0 nothing, 1 the plain expansion, 2 reuse.

    `fallback` is a small integer tensor of shape (batch,) or (1,), or None where the forecaster has no fall-backs.
    """

    output: Tensor
    fallback: Tensor | None = None


FALLBACKS = {1: "input unchanged: plain expansion", 2: "output unchanged: reuse"}


class Forecaster(ABC):
    """Estimates the output of a module from its last full steps and, if it wants to, from its present input."""

    @property
    @abstractmethod
    def expansion(self) -> Expansion:
        """The expansion of the forecast's direction; an error-driven schedule predicts inputs with the same one."""

    @property
    def full_steps_needed(self) -> int:
        """How many full steps a state must have seen before `forecast` may be called."""
        return min(self.expansion.order, 1) + 1

    @abstractmethod
    def update(self, state: Any, step: int, input: Tensor, output: Tensor) -> Any:
        """The state after the full step `step`; `state` is None at the first one.

        `input` and `output` are the module's features, batch first; they are kept by reference and must be detached.
        """

    @abstractmethod
    def forecast(self, state: Any, step: int, input: Tensor) -> Forecast:
        """The module's output at the cached step `step`, of the shape and dtype of the last full step's output."""


@dataclass(frozen=True)
class LadderForecaster(Forecaster):
    """A forecaster whose state is the ladder of its outputs, and whose forecast is a fixed combination of its terms."""

    def coefficients(self, ladder: Ladder, step: int) -> list[float]:
        """Coefficients of `ladder.terms[1:]` at `step`."""
        return self.expansion.coefficients(ladder, step)

    def update(self, state: Ladder | None, step: int, input: Tensor, output: Tensor) -> Ladder:
        return self.expansion.extend(state, step, output)

    def forecast(self, state: Ladder, step: int, input: Tensor) -> Forecast:
        return Forecast(weighted_sum(state.terms, self.coefficients(state, step)))
