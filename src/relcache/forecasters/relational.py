"""Relational: the direction from an expansion, the magnitude from the module's present input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relcache.expansion import (
    Expansion,
    Form,
    Ladder,
    Norm,
    check_choice,
    gram,
    gram_norm,
    last_gap,
    norm_l2,
    weighted_sum,
)
from relcache.forecasters.base import Forecast, Forecaster


class RelationalState(NamedTuple):
    """What one stream keeps between full steps.

    `input_change` is ‖Δ_N I‖ and `products` the Gram matrix of the ladder's differences, both per sample; `fallback`
    is what a first-order forecast falls back to. All three are None until the second full step.
    """

    ladder: Ladder
    input: Tensor
    input_change: Tensor | None
    products: Tensor | None
    fallback: Tensor | None


@dataclass(frozen=True)
class Relational(Forecaster):
    """Relational feature estimation (RFE): `O(t-k) = O(t) + s_N(t) ‖I(t-k) - I(t)‖ · g(direction)`.

    `s_N(t) = ‖Δ_N O‖ / ‖Δ_N I‖` over the last two full steps and `g(x) = x / ‖x‖`; the direction is the sum that
    `Taylor` or `Newton` adds. Norms run over all tokens and channels of one sample, so that a picture does not depend
    on its batch mates (our reading: the paper's formula, at batch 1); `norm="tensor"` runs them over the whole batch.

    A cached step takes no norm of an output. At order 1, s and g cancel and the coefficient of Δ_N O is
    `‖I(t-k) - I(t)‖ / ‖Δ_N I‖`; above, the direction's norm comes from the Gram matrix of the cached differences.
    Where ‖Δ_N I‖ = 0 the sample gets the plain expansion, where the direction is zero it gets O(t).

    Source: RFC, arXiv 2602.19506.

    Raises:
        ValueError: an order below 1, an unknown direction or norm.
    """

    order: int = 1
    direction: Form = "taylor"
    norm: Norm = "sample"

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or isinstance(self.order, bool) or self.order < 1:
            raise ValueError(
                f"the order of Relational is a whole number of at least 1, got {self.order!r}: "
                "without a difference there is no direction (Reuse is the forecaster of order 0)"
            )
        check_choice("the direction of Relational", self.direction, Form)
        check_choice("the norm of Relational", self.norm, Norm)

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order, self.direction)

    def update(self, state: RelationalState | None, step: int, input: Tensor, output: Tensor) -> RelationalState:
        ladder = self.expansion.extend(state.ladder if state else None, step, output)
        if state is None:
            return RelationalState(ladder, input, None, None, None)
        input_change = norm_l2(input - state.input, self.norm)
        products = gram(ladder.terms[1:], self.norm)
        return RelationalState(
            ladder, input, input_change, products, _fallback(input_change == 0, products[:, 0, 0] == 0)
        )

    def forecast(self, state: RelationalState, step: int, input: Tensor) -> Forecast:
        ladder, input_change, products = state.ladder, state.input_change, state.products
        assert input_change is not None
        assert products is not None
        plain = self.expansion.coefficients(ladder, step)
        moved = norm_l2(input - state.input, self.norm)
        still = input_change == 0
        if len(plain) == 1:
            # s ‖I(t-k) - I(t)‖ g(c D) = ‖I(t-k) - I(t)‖ / ‖Δ_N I‖ · Δ_N O, and D is Δ_N O over its divisor.
            divisor = 1 if self.direction == "taylor" else last_gap(ladder)
            coefficients = [torch.where(still, plain[0], moved / input_change * divisor)]
            return Forecast(weighted_sum(ladder.terms, coefficients), state.fallback)
        length, no_direction = gram_norm(products, plain)
        output_change = products[:, 0, 0].sqrt() * (1 if self.direction == "taylor" else last_gap(ladder))
        scale = torch.where(still, 1.0, output_change / input_change * moved / length)
        scale = torch.where(no_direction, 0.0, scale)
        return Forecast(weighted_sum(ladder.terms, [scale * c for c in plain]), _fallback(still, no_direction))


def _fallback(still: Tensor, no_direction: Tensor) -> Tensor:
    """Code of `Forecast.fallback` from two tensors of bools."""
    return torch.where(no_direction, 2, still.to(torch.int8))
