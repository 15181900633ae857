"""Divided differences, expansion coefficients and Gram norms: pure tensor functions.

Knows nothing of forecasters, schedules or models. A `Ladder` is a value: functions take one and return a new one.

Positions are step numbers, which grow as sampling goes on. With `n_0 > n_1 > …` the full steps, newest first, a ladder
holds `terms[0] = f(n_0)` and, behind it, differences of rising order. The two forms differ in what a difference is and
in the coefficient that it gets; the published one is TaylorSeer's (arXiv 2503.06923):

| form | `terms[i]` | coefficient at step n |
| --- | --- | --- |
| taylor, as published | `terms[i-1]` minus `terms[i-1]` one full step ago | `((n - n_0) / (n_0 - n_1))^i / i!` |
| newton (divided differences) | `f[n_0, …, n_i]` | `(n - n_0) (n - n_1) … (n - n_(i-1))` |

The Taylor form divides every difference by the last gap; the Newton form goes through the last `order + 1` values and
is exact for polynomials of degree `order` with any gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Form = Literal["taylor", "newton"]
Norm = Literal["sample", "tensor"]

GRAM_ROUNDING = 1e-7  # relative error that the products of a Gram matrix in float32 may have


class Ladder(NamedTuple):
    """The differences of a feature over the last full steps: `steps` newest first, `terms` by rising order."""

    steps: tuple[int, ...]
    terms: tuple[Tensor, ...]


@dataclass(frozen=True)
class Expansion:
    """How a feature is extrapolated: the highest order that is used, and the form.

    Raises:
        ValueError: a negative order, or a form that is neither "taylor" nor "newton".
    """

    order: int
    form: Form = "taylor"

    def __post_init__(self) -> None:
        if not isinstance(self.order, int) or isinstance(self.order, bool) or self.order < 0:
            raise ValueError(f"the order of an expansion is a whole number of at least 0, got {self.order!r}")
        check_choice("the form of an expansion", self.form, Form)

    def extend(self, ladder: Ladder | None, step: int, value: Tensor) -> Ladder:
        """The ladder after the full step `step` gave `value`; `ladder` is None at the first one.

        Orders that the ladder's history does not reach yet are left out, and appear as full steps come.
        """
        if ladder is None:
            return Ladder((step,), (value,))
        terms = [value]
        for order in range(min(self.order, len(ladder.terms))):
            difference = terms[order] - ladder.terms[order]
            if self.form == "newton":
                difference /= step - ladder.steps[order]
            terms.append(difference)
        return Ladder((step, *ladder.steps)[: self.order + 1], tuple(terms))

    def coefficients(self, ladder: Ladder, step: int) -> list[float]:
        """Coefficients of `ladder.terms[1:]` for a forecast at `step`; the coefficient of `terms[0]` is 1."""
        orders = range(1, len(ladder.terms))
        if self.form == "newton":
            return [math.prod(step - past for past in ladder.steps[:i]) for i in orders]
        if not orders:
            return []
        distance = (step - ladder.steps[0]) / last_gap(ladder)
        return [distance**i / math.factorial(i) for i in orders]


def check_choice(what: str, value: object, choices: object) -> None:
    """Raise ValueError unless `value` is one of the strings of the Literal type `choices`."""
    if value not in get_args(choices):
        raise ValueError(f"{what} is one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def last_gap(ladder: Ladder) -> int:
    """N: the number of steps between the last two full steps."""
    return ladder.steps[0] - ladder.steps[1]


def weighted_sum(terms: Sequence[Tensor], coefficients: Sequence[float | Tensor]) -> Tensor:
    """`terms[0] + Σ coefficients[i] · terms[i + 1]`, each term read once, in the dtype of `terms[0]`.

    Coefficients are numbers, or float tensors of shape (batch,) or (1,) that weigh each sample; with the latter, terms
    of half precision are accumulated in float32. Without coefficients `terms[0]` itself is returned, not a copy.
    """
    base, *differences = terms
    if not coefficients:
        return base
    wide = torch.promote_types(base.dtype, torch.float32)
    total = base
    for place, (difference, coefficient) in enumerate(zip(differences, coefficients, strict=True)):
        into = total if place else None  # the first term makes the result, the others are added in place
        if isinstance(coefficient, Tensor):
            factor = coefficient.to(wide).reshape(-1, *[1] * (base.ndim - 1))
            total = torch.addcmul(total, difference, factor, out=into)
        else:
            total = torch.add(total, difference, alpha=coefficient, out=into)
    return total.to(base.dtype)


def norm_l2(value: Tensor, norm: Norm) -> Tensor:
    """L2 norm of each sample, shape (batch,), or of the whole tensor, shape (1,); float32 or wider.

    Norms of the last dimension first, then of those: a long sum in float32 would lose digits.
    """
    parts = torch.linalg.vector_norm(value, dim=-1, dtype=torch.promote_types(value.dtype, torch.float32))
    return torch.linalg.vector_norm(_rows(parts, norm), dim=1)


def sum_absolute(value: Tensor) -> Tensor:
    """Sum of absolute values of each sample, shape (batch,); float32 or wider."""
    return _sum(value.abs(), "sample")


def gram(terms: Sequence[Tensor], norm: Norm) -> Tensor:
    """Inner products of `terms` with each other: (batch, m, m), or (1, m, m) over the whole tensor."""
    size = len(terms)
    upper = {(i, j): _sum(_wide(terms[i]) * _wide(terms[j]), norm) for i in range(size) for j in range(i, size)}
    rows = [torch.stack([upper[min(i, j), max(i, j)] for j in range(size)], -1) for i in range(size)]
    return torch.stack(rows, -2)


def gram_norm(products: Tensor, coefficients: Sequence[float]) -> tuple[Tensor, Tensor]:
    """`‖Σ c_i D_i‖₂` from the Gram matrix of the D, and where it is zero up to the rounding of the Gram matrix.

    Returns a tensor of norms and one of bools, both of shape (batch,) or (1,).
    """
    size = len(coefficients)
    square = torch.zeros_like(products[:, 0, 0])
    scale = torch.zeros_like(square)
    for i in range(size):
        for j in range(i, size):
            twice = 1 if i == j else 2
            square = torch.add(square, products[:, i, j], alpha=twice * coefficients[i] * coefficients[j])
        scale = torch.add(scale, products[:, i, i].sqrt(), alpha=abs(coefficients[i]))
    return square.clamp(min=0).sqrt(), square <= GRAM_ROUNDING * scale.square()


def _rows(value: Tensor, norm: Norm) -> Tensor:
    return value.reshape(1, -1) if norm == "tensor" else value.reshape(value.shape[0], -1)


def _sum(value: Tensor, norm: Norm) -> Tensor:
    """Sum of each sample or of all: over the last dimension in float32 or wider, over the rest in float64."""
    wide = torch.float32 if value.device.type == "mps" else torch.float64
    parts = value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))
    return _rows(parts, norm).sum(1, dtype=wide)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
