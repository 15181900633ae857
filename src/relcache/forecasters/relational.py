"""Relational: take the direction from an expansion, and the magnitude from the module's present input."""

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
    Gather,
    Norm,
    gram,
    gram_norm,
    largest_of,
    most_added,
    norm_l2,
    shortening,
    subsample,
    weighted_sum,
)

FARTHEST = 100.0  # an input that moved more than this multiple of ‖Δ_N I‖ gives no magnitude


class Relation(NamedTuple):
    """Relation of output to input changes over the last gap; sizes are (batch,) or (1,), float32 or wider.

    Attributes:
        rate: 1 / ‖Δ_N I‖.
        most: the greatest norm that may be added to the output.
        reach: the farthest move of the input for which the relation is used; below 0 where ‖Δ_N I‖ is 0.
        products: the Gram matrix of the differences, (batch, order, order) or (1, order, order).
        none, plain: int8 codes of the fall-backs with and without use of the relation.
        largest: in float16 the greatest absolute value of each term of the stack.
    """

    rate: Tensor
    most: Tensor
    reach: Tensor
    products: Tensor
    none: Tensor
    plain: Tensor
    largest: tuple[Tensor, ...]


class RelationalState(NamedTuple):
    """The state of one stream.

    Attributes:
        stack: terms of the outputs, (batch, order + 1, …), in their dtype.
        input: the input of the last full step, (batch, …), or its subsample at a `token_stride`.
        relation: None until the second full step.
    """

    stack: Tensor
    input: Tensor
    relation: Relation | None = None


@dataclass(frozen=True)
class Relational(Forecaster):
    """Relational feature estimation (RFE): `O(t-k) = O(t) + s_N(t) ‖I(t-k) - I(t)‖ · g(direction)`.

    `s_N(t) = ‖Δ_N O‖ / ‖Δ_N I‖` over the last two full steps and `g(x) = x / ‖x‖`; the direction is the sum that
    `Taylor` or `Newton` adds. Norms are over all tokens and channels of one sample, so a picture does not depend on its
    batch mates. This is the paper's formula at batch 1; `norm="tensor"` takes norms over the whole batch.

    A cached step takes no norm of an output. At order 1, s and g cancel, and the coefficient of Δ_N O is
    `‖I(t-k) - I(t)‖ / ‖Δ_N I‖`. At higher orders, the direction's norm comes from the Gram matrix of the differences.
    With a `token_stride` above 1 the norms of inputs use a subsample of the tokens, and only this is stored of the
    input. The stride grows to the next number coprime to the number of tokens.
    A sample with ‖Δ_N I‖ = 0 gets the plain expansion; a sample with a zero direction gets O(t).

    We add bounds, as the paper has none. A sample gets the plain expansion, bounded as in `Taylor`, if its input has
    moved more than 100 ‖Δ_N I‖, or if more than 16 times the norms of O(t) and Δ_N O would be added. In float16 the
    forecast is shortened as in `Taylor`.

    Source: RFC, arXiv 2602.19506.

    Raises:
        ValueError: the order is below 1, the direction or norm unknown, or the stride below 1.
    """

    order: int = 1
    direction: Form = "taylor"
    norm: Norm = "sample"
    token_stride: int = 1
    bounded_when_compiled = True
    divides_tokens = True

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

    def across(self, gather: Gather) -> Forecaster:
        if self.token_stride > 1:
            raise ValueError(
                f"token_stride={self.token_stride} would select other tokens where each process has some of them: "
                "leave it at 1"
            )
        return super().across(gather)

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        return self.expansion.may_stray(steps, coefficients)

    def update(
        self, state: RelationalState | None, steps: Sequence[int], input: Tensor, output: Tensor
    ) -> RelationalState:
        stack = self.expansion.extend(state.stack if state else None, steps, output)
        input = subsample(input, self.token_stride)
        if state is None:
            return RelationalState(stack, input)
        moved, size = norm_l2(input - state.input, self.norm), norm_l2(stack[:, 0], self.norm)
        products = gram(stack, self.norm)
        if self.gather is not None:
            moved, size, products = _over_processes(self.gather, moved, size, products)
        rate, square = 1 / moved, products[:, 0, 0]
        length = square.sqrt().to(moved.dtype)
        still = (moved == 0) | ~moved.isfinite()
        most = most_added(size, length)
        reach = torch.minimum(most / (length * rate), FARTHEST * moved).masked_fill_(still, -1.0)
        plain = (3 - 2 * still.to(torch.int8)).masked_fill_(square == 0, 2)
        none = torch.zeros_like(plain).masked_fill_(square == 0, 2)
        relation = Relation(rate, most, reach, products, none, plain, largest_of(stack, self.norm, self.gather))
        return RelationalState(stack, input, relation)

    def forecast(self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return self._forecast(state, coefficients, input, isinstance(coefficients[0], Tensor))

    def forecast_far(self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        return self._forecast(state, coefficients, input, True)

    def _forecast(
        self, state: RelationalState, coefficients: Sequence[float | Tensor], input: Tensor, far: bool
    ) -> Forecast:
        """Return the forecast; `far` says that the plain expansion may have to be shortened."""
        known = state.relation
        assert known is not None
        moved = norm_l2(subsample(input, self.token_stride) - state.input, self.norm, self.gather)
        near, plain = moved <= known.reach, known.plain
        expanded: Any = 1.0
        if far:
            lengths = known.products.diagonal(dim1=1, dim2=2).sqrt().unbind(1)
            expanded = shortening(lengths, coefficients, known.most)
            plain = torch.where(expanded < 1, SHORTENED, plain)
        weights: Sequence[float | Tensor] = coefficients
        fallback = torch.where(near, known.none, plain)
        if len(coefficients) == 1:
            # s ‖I(t-k) - I(t)‖ g(c ΔO) = ‖I(t-k) - I(t)‖ / ‖Δ_N I‖ · Δ_N O
            weights = [1.0]
            scale = torch.where(near, moved * known.rate, coefficients[0] * expanded)
        else:
            length, no_direction = gram_norm(known.products, coefficients)
            s = known.products[:, 0, 0].sqrt() * known.rate
            scale = torch.where(near, s * moved / length, expanded).masked_fill_(no_direction, 0.0)
            fallback.masked_fill_(no_direction, 2)
        if known.largest:
            scale, fallback = within_float16(known.largest, weights, scale, fallback)
        return Forecast(weighted_sum(state.stack, weights, scale), fallback)


def _over_processes(gather: Gather, moved: Tensor, size: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two norms, (batch,) or (1,), and a Gram matrix over the tokens of all processes, with one exchange."""
    squares = [norm.to(products.dtype).square()[:, None] for norm in (moved, size)]
    total = gather(torch.cat([*squares, products.flatten(1)], 1)).sum(0)
    norms = total[:, :2].sqrt().to(moved.dtype)
    return norms[:, 0], norms[:, 1], total[:, 2:].reshape(products.shape)
