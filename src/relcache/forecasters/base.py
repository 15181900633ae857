"""What every forecaster is. Knows nothing of schedules, models or the session.

A forecaster answers: what does a skipped module return? It holds options, never history. The history of one stream of
features is a `state`, which the session keeps: `update` takes the old one and returns the new one at a full step,
`forecast` reads it at a cached step. A state is made of tuples, lists and dictionaries (a NamedTuple, say), so that the
cache finds the tensors in it; the steps at which it was updated are not in it, as all modules share them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from relcache.expansion import Expansion, weighted_sum


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
    def keeps_input(self) -> bool:
        """Whether states hold the module's input: `update` is then given a copy of it that nobody else writes into."""
        return False

    @property
    def full_steps_needed(self) -> int:
        """How many full steps a state must have seen before `forecast` may be called."""
        return min(self.expansion.order, 1) + 1

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        """What `forecast` is given at the cached step `step` after full steps at `steps`, newest first."""
        return self.expansion.coefficients(steps, step)

    @abstractmethod
    def update(self, state: Any, steps: Sequence[int], input: Tensor, output: Tensor) -> Any:
        """The state after the full step `steps[0]`; `state` is None at the first one.

        Args:
            state: what the last full step has left; it is not used again and may be written over.
            steps: the full steps that the state has seen, newest first, the present one included; of older ones only
                as many as the expansion's order.
            input, output: the module's features, batch first, detached. Others may write into them afterwards: a state
                holds copies, or with `keeps_input` the input itself, which is a copy then.
        """

    @abstractmethod
    def forecast(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        """The module's output at a cached step, of the shape and dtype of the last full step's output.

        `coefficients` are those of the method of this name: numbers, or in compiled code tensors without dimensions.
        """


@dataclass(frozen=True)
class LadderForecaster(Forecaster):
    """A forecaster whose state is the stack of its outputs' differences, and whose forecast is their weighted sum."""

    def update(self, state: Tensor | None, steps: Sequence[int], input: Tensor, output: Tensor) -> Tensor:
        return self.expansion.extend(state, steps, output)

    def forecast(self, state: Tensor, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return Forecast(weighted_sum(state, coefficients))
