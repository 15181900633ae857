"""Differences of features, expansion coefficients, Gram norms and bounds: pure tensor functions.

Knows nothing of forecasters, schedules or models.

Let `n_0 > n_1 > …` be the numbers of the full steps, newest first, and `N = n_0 - n_1` the last gap. A stack is one
tensor of terms, (batch, order + 1, …): a forecast is one pass over it. Term 0 is `f(n_0)`, term i is N^i times the
difference D_i of order i. With `x = (n - n_0) / N`, the two forms define differences and coefficients as follows;
the published one is TaylorSeer's (arXiv 2503.06923):

| form | D_i | coefficient of N^i D_i at step n |
| --- | --- | --- |
| taylor, as published | `(D_(i-1)(n_0) - D_(i-1)(n_1)) / (n_0 - n_1)` | `x^i / i!` |
| newton (divided differences) | `f[n_0, …, n_i]` | `x (x + (n_0 - n_1) / N) … (x + (n_0 - n_(i-1)) / N)` |

The Taylor form divides each difference by the gap at the full step that adds it. The Newton form interpolates the last
`order + 1` values and is exact for polynomials of degree `order` with any gaps. At order 1 the forms are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from relcache.checks import check_choice, check_whole
from relcache.storage.identity import widest

Form = Literal["taylor", "newton"]
Norm = Literal["sample", "tensor"]
Gather = Callable[[Tensor], Tensor]
"""Returns the tensors of all processes that each have some tokens of every sample: (processes, …)."""

SMALL = 2**18  # bytes of a sample; a CPU extends larger samples one by one, so they stay in its cache
LIMIT = 16.0  # a forecast adds at most this multiple of the norms of the newest feature and its last change
GRAM_ROUNDING = 1e-7  # relative error of a float32 Gram matrix's products; (Σ a_i)² ≤ m Σ a_i²


@dataclass(frozen=True)
class Expansion:
    """The extrapolation of a feature: the highest order, and the form.

    Raises:
        ValueError: the order is negative, or the form is neither "taylor" nor "newton".
    """

    order: int
    form: Form = "taylor"

    def __post_init__(self) -> None:
        check_whole("the order of an expansion", self.order, 0)
        check_choice("the form of an expansion", self.form, Form)

    def extend(self, stack: Tensor | None, steps: Sequence[int], value: Tensor) -> Tensor:
        """Return the stack (batch, order + 1, …) after a full step, in the dtype of `value`; zeros beyond the history.

        Args:
            stack: the stack after the last full step; None at the first one. It is overwritten and returned, with two
                exceptions: order 0, where forecasts are views of it, and inference tensors outside inference mode.
            steps: the full steps, newest first, from the present one on.
            value: the step's feature, (batch, …); copied.
        """
        if stack is None or self.order == 0:
            new = value.new_zeros(value.shape[0], self.order + 1, *value.shape[1:])
            new[:, 0] = value
            return new
        if stack.is_inference() and not torch.is_inference_mode_enabled():
            stack = stack.clone()  # torch forbids writing into it here
        gaps = [steps[0] - past for past in steps[1 : self.order + 1]]
        if value.device.type == "cpu" and value[0].numel() * value.element_size() > SMALL:
            for terms, own in zip(stack, value, strict=True):
                self._advance(terms.unbind(0), gaps, own)
        else:
            self._advance(stack.unbind(1), gaps, value)
        return stack

    def _advance(self, terms: Sequence[Tensor], gaps: Sequence[int], value: Tensor) -> None:
        """Overwrite the terms after the new `value`: the highest first, as it needs all lower ones."""
        shrunk = gaps[0] / (gaps[1] - gaps[0]) if len(gaps) > 1 else 1.0  # ratio of the last gap to the one before
        for order in range(len(gaps), 0, -1):
            term = terms[order]
            for lower in range(order):
                torch.sub(term if lower else value, terms[lower], alpha=shrunk**lower, out=term)
                if self.form == "newton" and lower:
                    term *= gaps[0] / gaps[lower]
                if term.dtype == torch.float16:
                    term.nan_to_num_()  # the difference of two features may exceed the type
        terms[0].copy_(value)

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        """Return the coefficients of a stack's terms of order 1, 2, … for a forecast at `step`; term 0 has 1.

        `steps` are the full steps, newest first; a short history gives fewer coefficients.
        """
        orders = range(1, min(self.order, len(steps) - 1) + 1)
        if not orders:
            return []
        gap = steps[0] - steps[1]
        if self.form == "newton":
            return [math.prod((step - past) / gap for past in steps[:i]) for i in orders]
        return [((step - steps[0]) / gap) ** i / math.factorial(i) for i in orders]

    def may_stray(self, steps: Sequence[int], coefficients: Sequence[float]) -> bool:
        """Return whether a forecast with these coefficients may exceed `LIMIT` times the features at `steps`.

        The forecast is a weighted sum of these features; it may if the absolute weights add up to more than `LIMIT`.
        """
        indices = range(len(coefficients) + 1)
        rows = [[float(index == other) for other in indices] for index in indices]  # weights of the features in D_i
        weights = rows[0]
        for order, coefficient in enumerate(coefficients, 1):
            earlier = steps[order:] if self.form == "newton" else steps[1:]
            gaps = [step - past for step, past in zip(steps, earlier, strict=False)]
            pairs = zip(rows, rows[1:], gaps, strict=False)
            rows = [[(a - b) / gap for a, b in zip(row, older, strict=True)] for row, older, gap in pairs]
            factor = coefficient * (steps[0] - steps[1]) ** order
            weights = [weight + factor * share for weight, share in zip(weights, rows[0], strict=True)]
        return sum(map(abs, weights)) > LIMIT


def weighted_sum(stack: Tensor, coefficients: Sequence[float | Tensor], scale: Tensor | None = None) -> Tensor:
    """Return `stack[:, 0] + scale · Σ coefficients[i] · stack[:, i + 1]`, (batch, …), in the dtype of `stack`.

    Coefficients are numbers, or 0-d float tensors; with tensors, half precision is accumulated in float32. `scale`,
    (batch,) or (1,), weighs each sample, and is 1 by default. Without coefficients the result is a view of the stack.
    Each term is read once. Compiled code writes the result once, eager code once for each coefficient.
    """
    base = stack[:, 0]
    if not coefficients:
        return base
    wide = torch.promote_types(base.dtype, torch.float32)
    samples = None if scale is None else scale.to(wide).reshape(-1, *[1] * (base.ndim - 1))
    total = base
    for index, coefficient in enumerate(coefficients):
        difference = stack[:, index + 1]
        into = total if index else None  # the first term allocates the result, the others are added in place
        if isinstance(coefficient, Tensor):
            factor = coefficient.to(wide) if samples is None else coefficient * samples
            total = torch.addcmul(total, difference, factor, out=into)
        elif samples is not None:
            total = torch.addcmul(total, difference, samples, value=coefficient, out=into)
        else:
            total = torch.add(total, difference, alpha=coefficient, out=into)
    return total.to(base.dtype)


def subsample(value: Tensor, stride: int) -> Tensor:
    """Return every `stride`-th token of `value`, (…, tokens, channels), as a copy; `value` itself at a stride of 1.

    A stride with a common factor with the tokens of a picture's line would miss some columns. The stride therefore
    grows to the next number coprime to the number of tokens.
    """
    if stride == 1:
        return value
    if value.ndim < 3 or value.shape[-2] == 0:
        return value.clone()
    tokens = value.shape[-2]
    while any(stride % factor == tokens % factor == 0 for factor in range(2, stride + 1)):
        stride += 1  # math.gcd of a dynamic shape would break the graph of torch.compile
    return value[..., ::stride, :].contiguous()


def norm_l2(value: Tensor, norm: Norm, gather: Gather | None = None) -> Tensor:
    """Return the L2 norm of each sample, (batch,), or of the whole tensor, (1,); float32 or wider.

    It is the norm of the norms over the last dimension: one long sum in float32 would lose digits. With `gather` it
    includes the tokens of all processes.
    """
    parts = torch.linalg.vector_norm(value, dim=-1, dtype=torch.promote_types(value.dtype, torch.float32))
    own = torch.linalg.vector_norm(_rows(parts, norm), dim=1)
    return own if gather is None else torch.linalg.vector_norm(gather(own), dim=0)


def sum_absolute(value: Tensor) -> Tensor:
    """Return the sum of absolute values of each sample, (batch,); float64 if the device has it, else float32."""
    return _sum(value.abs(), "sample")


def gram(stack: Tensor, norm: Norm) -> Tensor:
    """Return the inner products of a stack's terms of order 1 … m: (batch, m, m), or (1, m, m) over the batch.

    They are sums over tokens: those of several processes add up.
    """
    terms = stack.unbind(1)[1:]
    size = len(terms)
    upper = {(i, j): _inner(terms[i], terms[j], norm) for i in range(size) for j in range(i, size)}
    rows = [torch.stack([upper[min(i, j), max(i, j)] for j in range(size)], -1) for i in range(size)]
    return torch.stack(rows, -2)


def gram_norm(products: Tensor, coefficients: Sequence[float | Tensor]) -> tuple[Tensor, Tensor]:
    """Return `‖Σ c_i D_i‖₂` from the Gram matrix (batch, m, m) of the D_i, and whether it is zero up to rounding.

    Coefficients are at most m numbers or 0-d tensors. Norms and bools are (batch,) or (1,).
    """
    size, entries = products.shape[-1], products.flatten(1).unbind(1)
    indices = range(len(coefficients))
    largest = entries[0] * (coefficients[0] * coefficients[0])
    for i in indices[1:]:
        largest = _plus(largest, entries[i * size + i], coefficients[i] * coefficients[i])
    square = largest
    for i, j in combinations(indices, 2):
        square = _plus(square, entries[i * size + j], 2 * coefficients[i] * coefficients[j])
    return square.clamp(min=0).sqrt(), square <= largest * (len(indices) * GRAM_ROUNDING)


def most_added(value: Tensor, change: Tensor) -> Tensor:
    """Return the greatest norm that a forecast may add.

    `value` and `change` are the norms of the newest feature and of its last change, float32 (batch,) or (1,).
    """
    return LIMIT * (value + change)


def shortening(norms: Sequence[Tensor], coefficients: Sequence[float | Tensor], most: Tensor) -> Tensor:
    """Return the factor, at most 1, that shortens a forecast's differences to at most `most`; (batch,) or (1,).

    `norms` are those of the terms of order 1, 2, …, each in the shape of `most`.
    """
    added = _weighted(norms, coefficients)
    return torch.where(added <= most, 1.0, most / added)


def largest_of(stack: Tensor, norm: Norm, gather: Gather | None = None) -> tuple[Tensor, ...]:
    """Return the greatest absolute value of each term of a float16 stack, each (batch,) or (1,), float32.

    For other dtypes, which do not overflow, it is empty. With `gather` it includes the tokens of all processes.
    """
    if stack.dtype != torch.float16:
        return ()
    own = torch.stack([_largest(term, norm) for term in stack.unbind(1)])
    return (own if gather is None else gather(own).amax(0)).unbind(0)


def narrowing(largest: Sequence[Tensor], coefficients: Sequence[float | Tensor], scale: Tensor | None = None) -> Tensor:
    """Return a further factor, at most 1, for the differences of a float16 forecast: (batch,) or (1,).

    No value of the forecast then exceeds float16, nor 1.1 times the greatest value of the newest feature, or 8192 if
    that is more. The gates and sums after a forecast overflow long before the forecast does.
    """
    value, *changes = largest
    most = (1.1 * value).clamp(8192.0, torch.finfo(torch.float16).max)
    added = _weighted(changes, coefficients) * (1.0 if scale is None else scale)
    return torch.where(value + added <= most, 1.0, ((most - value) / added).clamp(min=0))


def _weighted(sizes: Sequence[Tensor], coefficients: Sequence[float | Tensor]) -> Tensor:
    """Return Σ |c_i| sizes[i] over the coefficients."""
    weights: list[Any] = list(map(abs, coefficients))
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
    """Return the inner products, (batch,) or (1,): of channels in float32 or wider, of the rest in float64."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if a is b:
        return _total(torch.linalg.vector_norm(a, dim=-1, dtype=wide).square(), norm)
    if a.dtype == wide:
        return _total(torch.linalg.vecdot(a, b), norm)
    return _sum(a.to(wide) * b.to(wide), norm)


def _rows(value: Tensor, norm: Norm) -> Tensor:
    return value.reshape(1, -1) if norm == "tensor" else value.reshape(value.shape[0], -1)


def _sum(value: Tensor, norm: Norm) -> Tensor:
    """Return the sums, (batch,) or (1,): of channels in float32 or wider, of the rest in float64."""
    return _total(value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32)), norm)


def _total(parts: Tensor, norm: Norm) -> Tensor:
    return _rows(parts, norm).sum(1, dtype=widest(parts))


def coefficients_on(values: Sequence[float] | Tensor, order: int, device: torch.device) -> Tensor | None:
    """Return coefficients as a float32 tensor (order,), with zeros beyond the history; None at order 0."""
    if not order:
        return None
    numbers = [*values, *[0.0] * (order - len(values))]
    # filled one by one: a copy would make the device wait
    return torch.stack([torch.full((), float(number), dtype=torch.float32, device=device) for number in numbers])
