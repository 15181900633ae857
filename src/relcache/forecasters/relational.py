"""Relational: the direction from an expansion, the magnitude from the module's present input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache.checks import check_choice, check_whole
from relcache.forecasters.base import SHORTENED, Forecast, Forecaster, within_float16
from relcache.forecasters.expansion import (
    Expansion,
    Form,
    Norm,
    every,
    gram,
    gram_norm,
    largest_of,
    most_added,
    norm_l2,
    shortening,
    weighted_sum,
)

FARTHEST = 100.0  # times ‖Δ_N I‖ that an input may have moved for its movement to tell a magnitude


class RelationalState(NamedTuple):
    """What one stream keeps between full steps.

    Attributes:
        stack: of the outputs' terms.
        input: at the last full step, or every so manieth token of it.
        rate: 1 / ‖Δ_N I‖, per sample; what the input's movement is multiplied by to give the coefficient of Δ_N O.
        most: that may be added to the output, per sample.
        reach: how far the input may have moved for the relation to be used, per sample; below 0 where ‖Δ_N I‖ is 0.
        products: the Gram matrix of the differences.
        none, plain: codes of the fall-backs of a first-order forecast, where the relation is used and where it is not.
        largest: in float16 the greatest absolute value of each term of the stack, per sample.

    All but the first two are None until the second full step.
    """

    stack: Tensor
    input: Tensor
    rate: Tensor | None = None
    most: Tensor | None = None
    reach: Tensor | None = None
    products: Tensor | None = None
    none: Tensor | None = None
    plain: Tensor | None = None
    largest: tuple[Tensor, ...] = ()


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

    Bounds of ours, as the paper has none: where the input has moved more than 100 times as far as between the last two
    full steps, or so far that more than 16 times the norms of O(t) and Δ_N O would be added, the sample gets the plain
    expansion, itself bounded as that of `Taylor`. In float16 the forecast is shortened as that of `Taylor` is.

    Source: RFC, arXiv 2602.19506.

    Raises:
        ValueError: an order below 1, an unknown direction or norm, a stride below 1.
    """

    order: int = 1
    direction: Form = "taylor"
    norm: Norm = "sample"
    token_stride: int = 1
    bounded_when_compiled = True

    def __post_init__(self) -> None:
        hint = ": without a difference there is no direction; take Reuse, the forecaster of order 0"
        check_whole("the order of Relational", self.order, 1, hint=hint)
        check_choice("the direction of Relational", self.direction, Form)
        check_choice("the norm of Relational", self.norm, Norm)
        check_whole("the token_stride of Relational", self.token_stride, 1)

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, self.direction)

    @property
    def keeps_input(self) -> bool:
        return self.token_stride == 1

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        return self.expansion.may_stray(steps, coefficients)

    def update(
        self, state: RelationalState | None, steps: Sequence[int], input: Tensor, output: Tensor
    ) -> RelationalState:
        stack = self.expansion.extend(state.stack if state else None, steps, output)
        input = every(input, self.token_stride)
        if state is None:
            return RelationalState(stack, input)
        moved = norm_l2(input - state.input, self.norm)
        products, rate = gram(stack, self.norm), 1 / moved
        square = products[:, 0, 0]
        length = square.sqrt().to(moved.dtype)
        still = (moved == 0) | ~moved.isfinite()
        most = most_added(norm_l2(stack[:, 0], self.norm), length)
        reach = torch.minimum(most / (length * rate), FARTHEST * moved).masked_fill_(still, -1.0)
        plain = (3 - 2 * still.to(torch.int8)).masked_fill_(square == 0, 2)
        none = torch.zeros_like(plain).masked_fill_(square == 0, 2)
        largest = largest_of(stack, self.norm)
        return RelationalState(stack, input, rate, most, reach, products, none, plain, largest)

    def forecast(self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return self._forecast(state, coefficients, input, isinstance(coefficients[0], Tensor))

    def forecast_far(self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return self._forecast(state, coefficients, input, True)

    def _forecast(
        self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor, far: bool
    ) -> Forecast:
        """`far` says that the plain expansion may have to be shortened."""
        assert state.rate is not None
        assert state.most is not None
        assert state.reach is not None
        assert state.products is not None
        assert state.none is not None
        assert state.plain is not None
        moved = norm_l2(every(input, self.token_stride) - state.input, self.norm)
        near, plain = moved <= state.reach, state.plain
        expanded: Any = 1.0
        if far:
            lengths = state.products.diagonal(dim1=1, dim2=2).sqrt().unbind(1)
            expanded = shortening(lengths, coefficients, state.most)
            plain = torch.where(expanded < 1, SHORTENED, plain)
        weights: Sequence[float | Tensor] = coefficients
        if len(coefficients) == 1:
            # s ‖I(t-k) - I(t)‖ g(c ΔO) = ‖I(t-k) - I(t)‖ / ‖Δ_N I‖ · Δ_N O
            weights = [1.0]
            scale = torch.where(near, moved * state.rate, coefficients[0] * expanded)
            fallback = torch.where(near, state.none, plain)
        else:
            length, no_direction = gram_norm(state.products, coefficients)
            s = state.products[:, 0, 0].sqrt() * state.rate
            scale = torch.where(near, s * moved / length, expanded).masked_fill_(no_direction, 0.0)
            fallback = torch.where(near, state.none, plain).masked_fill_(no_direction, 2)
        if state.largest:
            scale, fallback = within_float16(state.largest, weights, scale, fallback)
        return Forecast(weighted_sum(state.stack, weights, scale), fallback)
