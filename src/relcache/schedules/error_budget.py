"""ErrorBudget: full again when the first module's input has strayed too far from its prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from relcache.expansion import Norm, check_choice, check_stride
from relcache.schedules.base import Schedule, check_count, short_of_warmup


class Spent(NamedTuple):
    """What a request has spent since its last full step: the sum of errors, and the number of steps."""

    error: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class ErrorBudget(Schedule):
    """Relational cache scheduling (RCS): full when the errors since the last full step add up to more than `threshold`.

    The error of a step is `E = ‖I - I_T‖₁ / ‖I‖₁`, where I is the input of the model's first module and I_T its
    prediction from the last full steps. The errors run from the step after a full one up to the present, which is full
    when the sum exceeds the threshold; the sum then restarts. The first `warmup` steps are full whatever the error.

    One decision serves the whole batch: with `norm="sample"` it takes the mean of the samples' errors, with
    `norm="tensor"` the ratio of the sums over the batch (the paper's formula; the same at batch 1). A sample's full
    steps therefore depend on its batch mates; Interval and Plan do not.

    `longest_gap` caps the number of steps from one full step to the next; the last `full_last` steps are always full.
    With a `token_stride` above 1 both sums run over every so manieth token, and only these are kept; the stride is the
    next one without a factor in common with the number of tokens.

    Source: RFC, arXiv 2602.19506.

    Raises:
        ValueError: a negative or infinite threshold, a warm-up below 1, a longest gap below 1, a negative
            `full_last`, a `token_stride` below 1.
    """

    threshold: float
    warmup: int = 2
    norm: Norm = "sample"
    longest_gap: int | None = None
    full_last: int = 0
    token_stride: int = 1
    needs_signal = True

    def __post_init__(self) -> None:
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or not math.isfinite(self.threshold) or self.threshold < 0:
            raise ValueError(f"the threshold of ErrorBudget is a finite number of at least 0, got {self.threshold!r}")
        check_count("the warmup of ErrorBudget", self.warmup, 1)
        check_choice("the norm of ErrorBudget", self.norm, Norm)
        if self.longest_gap is not None:
            check_count("the longest_gap of ErrorBudget", self.longest_gap, 1)
        check_stride("ErrorBudget", self.token_stride)
        check_count("the full_last of ErrorBudget", self.full_last, 0)

    def remark(self, total_steps: int) -> str | None:
        return short_of_warmup(self.warmup, total_steps)

    def start(self) -> Spent:
        return Spent()

    def wants_signal(self, step: int) -> bool:
        return step >= self.warmup

    def error(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        if self.norm == "tensor":
            return numerator.sum() / denominator.sum()
        return (numerator / denominator).mean()

    def wants_full(self, state: Spent, step: int, error: float | None) -> bool:
        if step < self.warmup:
            return True
        if self.longest_gap is not None and state.steps + 1 >= self.longest_gap:
            return True
        return error is not None and state.error + error > self.threshold

    def advance(self, state: Spent, step: int, error: float | None, full: bool) -> Spent:
        if full:
            return Spent()
        return Spent(state.error + (error or 0.0), state.steps + 1)
