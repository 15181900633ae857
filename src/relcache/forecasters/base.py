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
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from relcache.forecasters.expansion import (
    Expansion,
    largest_of,
    most_added,
    narrowing,
    norm_l2,
    shortening,
    weighted_sum,
)


class Forecast(NamedTuple):
    """A forecast output, and for each sample what it fell back to: 0 nothing, else a key of `FALLBACKS`.

    `fallback` is a small integer tensor of shape (batch,) or (1,), or None where there was nothing to fall back from.
    """

    output: Tensor
    fallback: Tensor | None = None


FALLBACKS = {
    1: "input unchanged: plain expansion",
    2: "output unchanged: reuse",
    3: "input moved too far for what it did before: plain expansion",
    4: "forecast too long: shortened",
    5: "forecast near the end of float16: shortened",
    6: "input and change of a block beyond float16: held at its end",
}
SHORTENED, NARROWED, HELD = 4, 5, 6


class Forecaster(ABC):
    """Estimates the output of a module from its last full steps and, if it wants to, from its present input."""

    bounded_when_compiled: ClassVar[bool] = False
    """Whether `forecast` with tensors as coefficients is within bounds, so that no graph is made for `forecast_far`."""

    reads_input: ClassVar[bool] = True
    """Whether `forecast` reads its input."""

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

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        """Whether these coefficients alone do not keep a forecast within bounds: `forecast_far` is then called."""
        return False

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

    def forecast_far(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        """`forecast`, kept within bounds where the coefficients alone do not see to it."""
        return self.forecast(state, coefficients, input)


class NarrowState(NamedTuple):
    """A stack in float16, and the greatest absolute value of each term per sample."""

    stack: Tensor
    largest: tuple[Tensor, ...]


@dataclass(frozen=True)
class LadderForecaster(Forecaster):
    """A forecaster whose state is the stack of its outputs' differences, and whose forecast is their weighted sum.

    Bounds of ours, per sample, on what has no bound in the papers: the differences add at most 16 times the norms of
    the newest output and of its last change, and are shortened to that. Only a gap of many times the last one can need
    it: no plan of the papers does at the orders 1 and 2. In float16 they are shortened as well where the forecast nears
    the end of the type (`expansion.narrowing`).
    """

    reads_input = False

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        return self.expansion.may_stray(steps, coefficients)

    def update(
        self, state: Tensor | NarrowState | None, steps: Sequence[int], input: Tensor, output: Tensor
    ) -> Tensor | NarrowState:
        stack = self.expansion.extend(None if state is None else _stack(state), steps, output)
        largest = largest_of(stack, "sample") if self.expansion.order else ()
        return NarrowState(stack, largest) if largest else stack

    def forecast(self, state: Tensor | NarrowState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return self._forecast(state, coefficients, None)

    def forecast_far(
        self, state: Tensor | NarrowState, coefficients: Sequence[float | Tensor], input: Tensor
    ) -> Forecast:
        value, *changes = (norm_l2(term, "sample") for term in _stack(state).unbind(1))
        return self._forecast(state, coefficients, shortening(changes, coefficients, most_added(value, changes[0])))

    def _forecast(
        self, state: Tensor | NarrowState, coefficients: Sequence[float | Tensor], scale: Tensor | None
    ) -> Forecast:
        fallback = None if scale is None else (scale < 1).to(torch.int8) * SHORTENED
        if isinstance(state, NarrowState):
            scale, fallback = within_float16(state.largest, coefficients, scale, fallback)
        return Forecast(weighted_sum(_stack(state), coefficients, scale), fallback)


def _stack(state: Tensor | NarrowState) -> Tensor:
    return state.stack if isinstance(state, NarrowState) else state


def within_float16(
    largest: Sequence[Tensor], coefficients: Sequence[float | Tensor], scale: Tensor | None, fallback: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`scale` and `fallback` of a forecast in float16, shortened where it nears the end of the type."""
    factor = narrowing(largest, coefficients, scale)
    code = (factor < 1).to(torch.int8) * NARROWED
    return factor if scale is None else scale * factor, code if fallback is None else torch.where(
        code > 0, code, fallback
    )


def within_type(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a block's input and its change were added to or taken from, with nothing beyond float16, and code `HELD` for
    each sample in which something was; other types do not run over. (batch, …), written over.
    """
    if rows.dtype != torch.float16:
        return rows, None
    code = rows.isinf().flatten(1).any(1).to(torch.int8) * HELD
    return rows.clamp_(-torch.finfo(rows.dtype).max, torch.finfo(rows.dtype).max), code
