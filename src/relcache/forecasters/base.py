"""The base class of forecasters. Knows nothing of schedules, models or the session.

A forecaster estimates the output of a skipped unit. It stores options, never history. The history of one stream of
features is a `state`, which the session stores: `update` replaces it at a full step, `forecast` reads it at a cached
one. A state is a tree of tuples, lists and dictionaries (such as a NamedTuple) with tensors as leaves. Step numbers are
not part of it, as all modules share them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from relcache.forecasters.expansion import (
    Expansion,
    Gather,
    largest_of,
    most_added,
    narrowing,
    norm_l2,
    shortening,
    weighted_sum,
)  # fmt: skip


class Forecast(NamedTuple):
    """A forecast output (batch, …), and the fall-back of each sample: 0 for none, else a key of `FALLBACKS`.

    `fallback` is an int8 tensor, (batch,) or (1,), or None if no fall-back was possible.
    """

    output: Tensor
    fallback: Tensor | None = None


FALLBACKS = {
    1: "input unchanged: plain expansion",
    2: "output unchanged: reuse",
    3: "input moved too far for what it did before: plain expansion",
    4: "forecast too long: shortened",
    5: "forecast near the end of float16: shortened",
    6: "input and change of a block beyond float16: clamped",
}
SHORTENED, NARROWED, CLAMPED = 4, 5, 6


class Forecaster(ABC):
    """Estimates the output of a module from its last full steps and, if needed, from its present input."""

    bounded_when_compiled: ClassVar[bool] = False
    """Whether `forecast` is bounded for tensor coefficients: compiled code then never uses `forecast_far`."""

    reads_input: ClassVar[bool] = True
    """Whether `forecast` reads its input."""

    divides_tokens: ClassVar[bool] = False
    """Whether processes may each have some tokens of a sample: sums and norms over tokens then use `gather`."""

    gather: Gather | None = None
    """Exchanges small tensors with the other processes; None if this process has all tokens. Set by `across`."""

    def across(self, gather: Gather) -> Forecaster:
        """Return this forecaster for processes that each have some tokens of every sample.

        Raises:
            ValueError: its forecasts would differ from those of one process.
        """
        if not self.divides_tokens:
            raise ValueError(
                f"{type(self).__name__} does not say whether each process may have some tokens of a sample: set its "
                "divides_tokens to True if no token depends on others, or if sums over tokens use self.gather"
            )
        shared = copy.copy(self)
        object.__setattr__(shared, "gather", gather)  # forecasters are frozen, and this is no option of a user
        return shared

    @property
    @abstractmethod
    def expansion(self) -> Expansion:
        """The expansion that gives the forecast's direction."""

    @property
    def keeps_input(self) -> bool:
        """Whether states contain the module's input: `update` then gets a copy that is not overwritten."""
        return False

    @property
    def full_steps_needed(self) -> int:
        """The number of full steps that `forecast` needs."""
        return min(self.expansion.order, 1) + 1

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        """Return the coefficients of `forecast` at the cached step `step`, after full `steps`, newest first."""
        return self.expansion.coefficients(steps, step)

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        """Return whether a forecast with these coefficients may exceed its bounds: `forecast_far` is then called."""
        return False

    @abstractmethod
    def update(self, state: Any, steps: Sequence[int], input: Tensor, output: Tensor) -> Any:
        """Return the state after the full step `steps[0]`.

        Args:
            state: the state after the last full step; None at the first one. It may be overwritten.
            steps: full steps, newest first: the present one, and as many earlier ones as the expansion's order.
            input, output: the module's features, (batch, …), floating-point, detached. They may be overwritten later:
                a state has copies. With `keeps_input` the input is a copy already.
        """

    @abstractmethod
    def forecast(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        """Return the module's output at a cached step, with the shape and dtype of the last full step's output.

        `coefficients` are results of `self.coefficients`: numbers, or in compiled code 0-d float tensors. `input`,
        (batch, …), is the module's present input.
        """

    def forecast_far(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        """Return a `forecast`, of the same shape and dtype, that is bounded even if its coefficients may stray."""
        return self.forecast(state, coefficients, input)


class LadderState(NamedTuple):
    """A stack (batch, order + 1, …), and in float16 the greatest absolute value of each term, (batch,) float32."""

    stack: Tensor
    largest: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class LadderForecaster(Forecaster):
    """A forecaster with a stack of its outputs' differences as state, and their weighted sum as forecast.

    We add bounds per sample, as the papers have none. The differences are shortened to add at most 16 times the norms
    of the newest output and its last change. Only a gap many times longer than the last one can need this; at orders 1
    and 2 no plan of the papers does. In float16 differences are also shortened if the forecast nears the limit of the
    type (`expansion.narrowing`).
    """

    reads_input = False
    divides_tokens = True

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        return self.expansion.may_stray(steps, coefficients)

    def update(self, state: LadderState | None, steps: Sequence[int], input: Tensor, output: Tensor) -> LadderState:
        stack = self.expansion.extend(state.stack if state else None, steps, output)
        return LadderState(stack, largest_of(stack, "sample", self.gather) if self.expansion.order else ())

    def forecast(self, state: LadderState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return self._forecast(state, coefficients, None)

    def forecast_far(self, state: LadderState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        value, *changes = (norm_l2(term, "sample", self.gather) for term in state.stack.unbind(1))
        return self._forecast(state, coefficients, shortening(changes, coefficients, most_added(value, changes[0])))

    def _forecast(self, state: LadderState, coefficients: Sequence[float | Tensor], scale: Tensor | None) -> Forecast:
        fallback = None if scale is None else (scale < 1).to(torch.int8) * SHORTENED
        if state.largest:
            scale, fallback = within_float16(state.largest, coefficients, scale, fallback)
        return Forecast(weighted_sum(state.stack, coefficients, scale), fallback)


def within_float16(
    largest: Sequence[Tensor], coefficients: Sequence[float | Tensor], scale: Tensor | None, fallback: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return `scale`, reduced where a forecast nears the limit of float16, and `fallback`; each (batch,) or (1,)."""
    factor = narrowing(largest, coefficients, scale)
    code = (factor < 1).to(torch.int8) * NARROWED
    scale = factor if scale is None else scale * factor
    return scale, code if fallback is None else torch.where(code > 0, code, fallback)


def within_type(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Clamp float16 features (batch, …) in place to the range of the type; leave other dtypes, which do not overflow.

    Return the features, and for float16 `CLAMPED` or 0 for each sample, (batch,) int8: whether it had infinite values.
    """
    if rows.dtype != torch.float16:
        return rows, None
    code = rows.isinf().flatten(1).any(1).to(torch.int8) * CLAMPED
    return rows.clamp_(-torch.finfo(rows.dtype).max, torch.finfo(rows.dtype).max), code
