"""Relational: the direction from an expansion, the magnitude from the module's present input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relcache.expansion import (
    Expansion,
    Form,
    Norm,
    check_choice,
    check_stride,
    every,
    gram,
    gram_norm,
    last_gap,
    norm_l2,
    weighted_sum,
)
from relcache.forecasters.base import Forecast, Forecaster


class RelationalState(NamedTuple):
    """What one stream keeps between full steps.

    Attributes:
        stack: of the outputs' terms.
        input: at the last full step, or every so manieth token of it.
        rate: 1 / ‖Δ_N I‖, for the Newton direction N / ‖Δ_N I‖, per sample; what the input's movement is multiplied by
            to give the coefficient of the first difference.
        s: ‖Δ_N O‖ / ‖Δ_N I‖, per sample.
        still: where ‖Δ_N I‖ is 0.
        products: the Gram matrix of the differences.
        fallback: what a first-order forecast falls back to.

    All but the first two are None until the second full step.
    """

    stack: Tensor
    input: Tensor
    rate: Tensor | None = None
    s: Tensor | None = None
    still: Tensor | None = None
    products: Tensor | None = None
    fallback: Tensor | None = None


@dataclass(frozen=True)
class Relational(Forecaster):
    """Relational feature estimation (RFE): `O(t-k) = O(t) + s_N(t) ‖I(t-k) - I(t)‖ · g(direction)`.

    `s_N(t) = ‖Δ_N O‖ / ‖Δ_N I‖` over the last two full steps and `g(x) = x / ‖x‖`; the direction is the sum that
    `Taylor` or `Newton` adds. Norms run over all tokens and channels of one sample, so that a picture does not depend
    on its batch mates (our reading: the paper's formula, at batch 1); `norm="tensor"` runs them over the whole batch.

    A cached step takes no norm of an output. At order 1, s and g cancel and the coefficient of Δ_N O is
    `‖I(t-k) - I(t)‖ / ‖Δ_N I‖`; above, the direction's norm comes from the Gram matrix of the cached differences.
    With a `token_stride` above 1 the norms of inputs run over every so manieth token, of both ‖I(t-k) - I(t)‖ and
    ‖Δ_N I‖, and only these tokens are kept of the input. The stride is the next one without a factor in common with the
    number of tokens.
    Where ‖Δ_N I‖ = 0 the sample gets the plain expansion, where the direction is zero it gets O(t).

    Source: RFC, arXiv 2602.19506.

    Raises:
        ValueError: an order below 1, an unknown direction or norm, a stride below 1.
    """

    order: int = 1
    direction: Form = "taylor"
    norm: Norm = "sample"
    token_stride: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or isinstance(self.order, bool) or self.order < 1:
            raise ValueError(
                f"the order of Relational is a whole number of at least 1, got {self.order!r}: "
                "without a difference there is no direction (Reuse is the forecaster of order 0)"
            )
        check_choice("the direction of Relational", self.direction, Form)
        check_choice("the norm of Relational", self.norm, Norm)
        check_stride("Relational", self.token_stride)

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, self.direction)

    @property
    def keeps_input(self) -> bool:
        return self.token_stride == 1

    def update(
        self, state: RelationalState | None, steps: Sequence[int], input: Tensor, output: Tensor
    ) -> RelationalState:
        stack = self.expansion.extend(state.stack if state else None, steps, output)
        input = every(input, self.token_stride)
        if state is None:
            return RelationalState(stack, input)
        moved = norm_l2(input - state.input, self.norm)
        still = moved == 0
        gap = 1 if self.direction == "taylor" else last_gap(steps)
        products, rate = gram(stack, self.norm), gap / moved
        square = products[:, 0, 0]
        s = square.sqrt() * rate
        return RelationalState(stack, input, rate, s, still, products, _fallback(still, square == 0))

    def forecast(self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        assert state.rate is not None
        assert state.s is not None
        assert state.still is not None
        assert state.products is not None
        moved = norm_l2(every(input, self.token_stride) - state.input, self.norm)
        if len(coefficients) == 1:
            # s ‖I(t-k) - I(t)‖ g(c D) = ‖I(t-k) - I(t)‖ / ‖Δ_N I‖ · Δ_N O, and D is Δ_N O over its divisor.
            scale = (moved * state.rate).masked_fill_(state.still, coefficients[0])
            return Forecast(weighted_sum(state.stack, [1.0], scale), state.fallback)
        length, no_direction = gram_norm(state.products, coefficients)
        scale = (state.s * moved / length).masked_fill_(state.still, 1.0).masked_fill_(no_direction, 0.0)
        fallback = _fallback(state.still, no_direction)
        return Forecast(weighted_sum(state.stack, coefficients, scale), fallback)


def _fallback(still: Tensor, no_direction: Tensor) -> Tensor:
    """Code of `Forecast.fallback` from two tensors of bools."""
    return still.to(torch.int8).masked_fill_(no_direction, 2)
