"""ErrorBudget: make a step full when the first module's input has strayed too far from its prediction."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from relcache.checks import check_choice, check_number, check_whole
from relcache.forecasters.expansion import Norm
from relcache.schedules.base import Schedule, Setting, short_of_budget, short_of_warmup
from relcache.schedules.growing import planned_steps


class Spent(NamedTuple):
    """The errors since the last full step, and the remaining budget.

    Attributes:
        threshold: the present threshold.
        error: the sum of errors since the last full step.
        steps: the cached steps since then.
        left: undecided steps of the request; None if their number is unknown.
        full_left: the number of them that may be full; None without a budget.
        course: the full steps that `Growing` plans for the same budget; empty without a budget.
    """

    threshold: float
    error: float = 0.0
    steps: int = 0
    left: int | None = None
    full_left: int | None = None
    course: tuple[int, ...] = ()

    def next_gap(self, step: int) -> float:
        """Return the gap after the full step `step` that makes the remaining budget last to the end.

        On the course this is the course's own gap. Off the course, that gap is multiplied by two ratios. The first is
        that of the course's remaining full steps to the budget's. The second is that of the distances to the
        course's end, from `step` and from the course's last full step.
        """
        left, full_left = self.left or 1, self.full_left or 1
        done = bisect_right(self.course, step)
        remaining = len(self.course) - done
        if not remaining or not done:
            return left / full_left
        last, end = self.course[done - 1], self.course[-1]
        return (self.course[done] - last) * (end - step) / (end - last) * remaining / full_left


@dataclass(frozen=True)
class ErrorBudget(Schedule):
    """Relational cache scheduling (RCS): a step is full if errors since the last full one exceed `threshold` in sum.

    The error of a step is `E = ‖I - I_T‖₁ / ‖I‖₁`, where I is the input of the model's first module and I_T its
    prediction from the last full steps, by the `predictor`. The sum starts at the step after a full one, and includes
    the error of the step to decide on. The first `warmup` steps are always full.

    One decision is made for the whole batch. With `norm="sample"` it uses the mean of the samples' errors. With
    `norm="tensor"` it uses the ratio of sums over the batch, the paper's formula, which is the same at batch 1. A
    sample's full steps therefore depend on its batch mates, unlike with Interval and Plan.

    With `full_steps` exactly this number of steps is full, and `threshold` is only the initial threshold. After each
    gap of length g it is multiplied by `G / g`, where G is the gap that `Growing` plans next for the same budget. When
    the remaining budget covers all remaining steps, they are all full; when it is used up, they are all cached.

    `longest_gap` is the greatest distance from one full step to the next. The last `full_last` steps are always full.
    With a `token_stride` above 1 the error is computed and stored on a subsample of the tokens; the stride grows to the
    next number coprime to the number of tokens.

    Source: RFC, arXiv 2602.19506.

    Raises:
        ValueError: a value is out of its range, or `full_steps` comes with a threshold of 0, `longest_gap` or
            `full_last`.
    """

    threshold: float
    warmup: int = 2
    norm: Norm = "sample"
    longest_gap: int | None = None
    full_last: int = 0
    token_stride: int = 1
    full_steps: int | None = None
    needs_signal = True

    def __post_init__(self) -> None:
        check_number("the threshold of ErrorBudget", self.threshold, least=0)
        check_choice("the norm of ErrorBudget", self.norm, Norm)
        for name, least in (("warmup", 1), ("token_stride", 1), ("full_last", 0)):
            check_whole(f"the {name} of ErrorBudget", getattr(self, name), least)
        for name in ("longest_gap", "full_steps"):
            if getattr(self, name) is not None:
                check_whole(f"the {name} of ErrorBudget", getattr(self, name), 1)
        others = self.longest_gap is not None or self.full_last or not self.threshold
        if self.full_steps is not None and others:
            raise ValueError(
                "full_steps of ErrorBudget goes with a threshold above 0, and without longest_gap and full_last"
            )

    @property
    def needs_total_steps(self) -> str | None:
        if self.full_steps is not None:
            return f"full_steps={self.full_steps}"
        return f"full_last={self.full_last}" if self.full_last else None

    def remark(self, total_steps: int) -> str | None:
        return short_of_budget(self.full_steps, total_steps) or short_of_warmup(self.warmup, total_steps)

    def start(self, setting: Setting) -> Spent:
        state = Spent(self.threshold, left=setting.total_steps)
        if self.full_steps is None:
            return state
        course = planned_steps(setting._replace(history=self.warmup), self.full_steps)
        return state._replace(full_left=self.full_steps, course=course)

    def with_budget(self, full_steps: int | None, speedup: float | None) -> ErrorBudget | None:
        return None if full_steps is None else replace(self, full_steps=full_steps, longest_gap=None, full_last=0)

    def wants_signal(self, step: int) -> bool:
        return step >= self.warmup

    def error(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        if self.norm == "tensor":
            return numerator.sum() / denominator.sum()
        return (numerator / denominator).mean()

    def wants_full(self, state: Spent, step: int, error: float | None) -> bool:
        if state.full_left is not None and state.left is not None:
            if state.full_left >= state.left:
                return True
            if state.full_left <= 0:
                return False
        if step < self.warmup:
            return True
        if self.longest_gap is not None and state.steps + 1 >= self.longest_gap:
            return True
        if state.left is not None and 0 < state.left <= self.full_last:
            return True
        return error is not None and state.error + error > state.threshold

    def advance(self, state: Spent, step: int, error: float | None, full: bool) -> Spent:
        left = None if state.left is None else max(state.left - 1, 0)
        if not full:
            return state._replace(error=state.error + (error or 0.0), steps=state.steps + 1, left=left)
        gap, state = state.steps + 1, state._replace(error=0.0, steps=0, left=left)
        if state.full_left is None:
            return state
        after = state._replace(full_left=state.full_left - 1)
        if step < self.warmup or not left or not after.full_left:
            return after
        return after._replace(threshold=state.threshold * after.next_gap(step) / gap)
