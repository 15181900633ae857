"""Differences of features, expansion coefficients, Gram norms and bounds: pure tensor functions.

Knows nothing of forecasters, schedules or models.

Positions are step numbers, which grow as sampling goes on. With `n_0 > n_1 > …` the full steps, newest first, and
`N = n_0 - n_1` the last gap, a stack of terms, (batch, order + 1, …), holds `terms[0] = f(n_0)` and, behind it, N^i
times the difference D_i of order i, all in one piece of memory, so that a forecast is one pass over it. With
`x = (n - n_0) / N` the two forms differ in what a difference is and in the coefficient that its term gets; the
published one is TaylorSeer's (arXiv 2503.06923):

| form | D_i | coefficient of N^i D_i at step n |
| --- | --- | --- |
| taylor, as published | `(D_(i-1)(n_0) - D_(i-1)(n_1)) / (n_0 - n_1)` | `x^i / i!` |
| newton (divided differences) | `f[n_0, …, n_i]` | `x (x + (n_0 - n_1) / N) … (x + (n_0 - n_(i-1)) / N)` |

The Taylor form divides each difference by the gap at the full step where it is taken. The Newton form goes through the
last `order + 1` values and is exact for polynomials of degree `order` with any gaps. At order 1 they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from relcache.checks import check_choice, check_whole
from relcache.storage.identity import widest

Form = Literal["taylor", "newton"]
Norm = Literal["sample", "tensor"]

SMALL = 2**18  # bytes of a sample; larger ones are extended one by one on a CPU, whose cache keeps them meanwhile
LIMIT = 16.0  # times the norms of the newest feature and of its last change: the most that a forecast adds
GRAM_ROUNDING = 1e-7  # relative error that the products of a Gram matrix in float32 may have; (Σ a_i)² ≤ m Σ a_i²


@dataclass(frozen=True)
class Expansion:
    """How a feature is extrapolated: the highest order that is used, and the form.

    Raises:
        ValueError: a negative order, or a form that is neither "taylor" nor "newton".
    """

    order: int
    form: Form = "taylor"

    def __post_init__(self) -> None:
        check_whole("the order of an expansion", self.order, 0)
        check_choice("the form of an expansion", self.form, Form)

    def extend(self, stack: Tensor | None, steps: Sequence[int], value: Tensor) -> Tensor:
        """The stack after a full step gave `value`: (batch, order + 1, …), terms by rising order; zeros where the
        history does not reach yet.

        Args:
            stack: what the full step before has left, None at the first one. It is written over and returned, so that
                no second one is held beside it; not at order 0, where the forecasts are views of it, nor where it was
                made in inference mode and that has been left.
            steps: the full steps, newest first, the present one included.
            value: (batch, …); copied.
        """
        if stack is None or self.order == 0:
            new = value.new_zeros(value.shape[0], self.order + 1, *value.shape[1:])
            new[:, 0] = value
            return new
        if stack.is_inference() and not torch.is_inference_mode_enabled():
            stack = stack.clone()  # nobody may write into it here
        gaps = [steps[0] - past for past in steps[1 : self.order + 1]]
        if value.device.type == "cpu" and value[0].numel() * value.element_size() > SMALL:
            for terms, own in zip(stack, value, strict=True):
                self._advance(terms.unbind(0), gaps, own)
        else:
            self._advance(stack.unbind(1), gaps, value)
        return stack

    def _advance(self, terms: Sequence[Tensor], gaps: Sequence[int], value: Tensor) -> None:
        """Write the terms after `value` over those before it: the highest first, as it needs all the lower ones."""
        shrunk = gaps[0] / (gaps[1] - gaps[0]) if len(gaps) > 1 else 1.0  # the last gap in terms of the one before
        for order in range(len(gaps), 0, -1):
            term = terms[order]
            for lower in range(order):
                torch.sub(term if lower else value, terms[lower], alpha=shrunk**lower, out=term)
                if self.form == "newton" and lower:
                    term *= gaps[0] / gaps[lower]
                if term.dtype == torch.float16:
                    term.nan_to_num_()  # the difference of two features may be greater than any feature
        terms[0].copy_(value)

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        """Coefficients of a stack's terms of order 1, 2, … for a forecast at `step`; that of the value itself is 1.

        `steps` are the full steps, newest first. There are as many coefficients as the history reaches.
        """
        orders = range(1, min(self.order, len(steps) - 1) + 1)
        if not orders:
            return []
        gap = steps[0] - steps[1]
        if self.form == "newton":
            return [math.prod((step - past) / gap for past in steps[:i]) for i in orders]
        return [((step - steps[0]) / gap) ** i / math.factorial(i) for i in orders]

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        """Whether a forecast with these coefficients may be more than `LIMIT` times as large as the features at
        `steps`: it is a weighted sum of them, and their weights, taken absolute, add up to more.
        """
        places = range(len(coefficients) + 1)
        rows = [[float(place == other) for other in places] for place in places]  # of D_i the weights of the features
        weights = rows[0]
        for order, coefficient in enumerate(coefficients, 1):
            behind = steps[order:] if self.form == "newton" else steps[1:]
            gaps = [step - past for step, past in zip(steps, behind, strict=False)]
            pairs = zip(rows, rows[1:], gaps, strict=False)
            rows = [[(a - b) / gap for a, b in zip(row, older, strict=True)] for row, older, gap in pairs]
            factor = coefficient * (steps[0] - steps[1]) ** order
            weights = [weight + factor * share for weight, share in zip(weights, rows[0], strict=True)]
        return sum(map(abs, weights)) > LIMIT


def weighted_sum(stack: Tensor, coefficients: Sequence[float | Tensor], scale: Tensor | None = None) -> Tensor:
    """`stack[:, 0] + scale · Σ coefficients[i] · stack[:, i + 1]`, (batch, …), in the dtype of `stack`.

    Coefficients are numbers, or float tensors without dimensions; `scale`, of shape (batch,) or (1,), weighs each
    sample, and is 1 without one. With tensors, terms of half precision are accumulated in float32. Without coefficients
    a view of the stack is returned, not a copy. Each term is read once, and in compiled code the result is written
    once; uncompiled it is also read and written again for each coefficient after the first.
    """
    base = stack[:, 0]
    if not coefficients:
        return base
    wide = torch.promote_types(base.dtype, torch.float32)
    samples = None if scale is None else scale.to(wide).reshape(-1, *[1] * (base.ndim - 1))
    total = base
    for place, coefficient in enumerate(coefficients):
        difference = stack[:, place + 1]
        into = total if place else None  # the first term makes the result, the others are added in place
        if isinstance(coefficient, Tensor):
            factor = coefficient.to(wide) if samples is None else coefficient * samples
            total = torch.addcmul(total, difference, factor, out=into)
        elif samples is not None:
            total = torch.addcmul(total, difference, samples, value=coefficient, out=into)
        else:
            total = torch.add(total, difference, alpha=coefficient, out=into)
    return total.to(base.dtype)


def every(value: Tensor, stride: int) -> Tensor:
    """Every `stride`-th token of `value`, (…, tokens, channels), as a copy; `value` itself at a stride of 1.

    A stride with a factor in common with the number of tokens, and so with that in a line of the picture if there are
    no others, would see some columns only: the next greater one without is taken.
    """
    if stride == 1:
        return value
    if value.ndim < 3 or value.shape[-2] == 0:
        return value.clone()
    tokens = value.shape[-2]
    while any(stride % factor == 0 and tokens % factor == 0 for factor in range(2, stride + 1)):
        stride += 1
    return value[..., ::stride, :].contiguous()


def norm_l2(value: Tensor, norm: Norm) -> Tensor:
    """L2 norm of each sample, shape (batch,), or of the whole tensor, shape (1,); float32 or wider.

    Norms of the last dimension first, then of those: a long sum in float32 would lose digits.
    """
    parts = torch.linalg.vector_norm(value, dim=-1, dtype=torch.promote_types(value.dtype, torch.float32))
    return torch.linalg.vector_norm(_rows(parts, norm), dim=1)


def sum_absolute(value: Tensor) -> Tensor:
    """Sum of absolute values of each sample, shape (batch,); float32 or wider."""
    return _sum(value.abs(), "sample")


def gram(stack: Tensor, norm: Norm) -> Tensor:
    """Inner products of a stack's terms of order 1, 2, … with each other: (batch, m, m), or (1, m, m) over all."""
    size = stack.shape[1] - 1
    terms = [stack[:, place + 1] for place in range(size)]
    upper = {(i, j): _inner(terms[i], terms[j], norm) for i in range(size) for j in range(i, size)}
    rows = [torch.stack([upper[min(i, j), max(i, j)] for j in range(size)], -1) for i in range(size)]
    return torch.stack(rows, -2)


def gram_norm(products: Tensor, coefficients: Sequence[float | Tensor]) -> tuple[Tensor, Tensor]:
    """`‖Σ c_i D_i‖₂` from the Gram matrix of the D, and where it is zero up to the rounding of the Gram matrix.

    Coefficients are numbers or tensors without dimensions, as many or fewer than the D. Returns a tensor of norms and
    one of bools, both of shape (batch,) or (1,).
    """
    size, entries = products.shape[-1], products.flatten(1).unbind(1)
    places = range(len(coefficients))
    largest = entries[0] * (coefficients[0] * coefficients[0])
    for i in places[1:]:
        largest = _plus(largest, entries[i * size + i], coefficients[i] * coefficients[i])
    square = largest
    for i, j in combinations(places, 2):
        square = _plus(square, entries[i * size + j], 2 * coefficients[i] * coefficients[j])
    return square.clamp(min=0).sqrt(), square <= largest * (len(places) * GRAM_ROUNDING)


def most_added(value: Tensor, change: Tensor) -> Tensor:
    """The most that a forecast adds to a feature, from the norms of the newest feature and of its last change."""
    return LIMIT * (value + change)


def shortening(norms: Sequence[Tensor], coefficients: Sequence[float | Tensor], most: Tensor) -> Tensor:
    """What the differences of a forecast are multiplied by, at most 1, so that they add no more than `most`: (batch,)
    or (1,). `norms` are those of the terms of order 1, 2, ….
    """
    added = _weighed(norms, coefficients)
    return torch.where(added <= most, 1.0, most / added)


def largest_of(stack: Tensor, norm: Norm) -> tuple[Tensor, ...]:
    """The greatest absolute value of each term of a stack in float16, each (batch,) or (1,), float32; of other types
    nothing, as they do not run over.
    """
    return tuple(_largest(term, norm) for term in stack.unbind(1)) if stack.dtype == torch.float16 else ()


def narrowing(largest: Sequence[Tensor], coefficients: Sequence[float | Tensor], scale: Tensor | None = None) -> Tensor:
    """What the differences of a forecast in float16 are multiplied by further, at most 1: (batch,) or (1,).

    No value of the forecast then exceeds 1.1 times the greatest of the newest feature, nor float16; what is below
    8192 is free. What comes behind the forecast, gates and sums, runs over long before the forecast itself does.
    """
    value, *changes = largest
    most = (1.1 * value).clamp(8192.0, torch.finfo(torch.float16).max)
    added = _weighed(changes, coefficients) * (1.0 if scale is None else scale)
    return torch.where(value + added <= most, 1.0, ((most - value) / added).clamp(min=0))


def _weighed(sizes: Sequence[Tensor], coefficients: Sequence[float | Tensor]) -> Tensor:
    """Σ |c_i| sizes[i], over as many as there are coefficients."""
    weights = [c.abs() if isinstance(c, Tensor) else abs(c) for c in coefficients]
    total = sizes[0] * weights[0]
    for size, weight in zip(sizes[1:], weights[1:], strict=False):
        total = _plus(total, size, weight)
    return total


def _largest(value: Tensor, norm: Norm) -> Tensor:
    rows = _rows(value, norm)
    return rows.abs().amax(1).float() if rows.shape[1] else rows.new_zeros(len(rows), dtype=torch.float32)


def _plus(total: Tensor, value: Tensor, weight: float | Tensor) -> Tensor:
    return total + value * weight if isinstance(weight, Tensor) else torch.add(total, value, alpha=weight)


def _inner(a: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """Inner product of each sample or of all: over the last dimension in float32 or wider, over the rest in float64."""
    if a is b:
        wide = torch.promote_types(a.dtype, torch.float32)
        return _total(torch.linalg.vector_norm(a, dim=-1, dtype=wide).square(), norm)
    if a.dtype in (torch.float32, torch.float64):
        return _total(torch.linalg.vecdot(a, b), norm)
    return _sum(_wide(a) * _wide(b), norm)


def _rows(value: Tensor, norm: Norm) -> Tensor:
    return value.reshape(1, -1) if norm == "tensor" else value.reshape(value.shape[0], -1)


def _sum(value: Tensor, norm: Norm) -> Tensor:
    """Sum of each sample or of all: over the last dimension in float32 or wider, over the rest in float64."""
    return _total(value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32)), norm)


def _total(parts: Tensor, norm: Norm) -> Tensor:
    return _rows(parts, norm).sum(1, dtype=widest(parts))


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def coefficients_on(values: Sequence[float] | Tensor, order: int, device: torch.device) -> Tensor | None:
    """Return coefficients as a float32 tensor (order,), with zeros where the history does not reach."""
    if not order:
        return None
    numbers = [*values, *[0.0] * (order - len(values))]
    # filled one by one, as the device would wait for a copy
    return torch.stack([torch.full((), float(number), dtype=torch.float32, device=device) for number in numbers])
