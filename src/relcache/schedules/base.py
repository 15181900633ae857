"""The base class of schedules. Knows expansions, nothing of forecasters, models or the session.

A schedule decides which steps are computed in full. It stores options, never history: `start` makes the state of a
request from its `Setting`, `wants_full` reads it before a step, `advance` replaces it after the decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from relcache.forecasters.expansion import Expansion


class Setting(NamedTuple):
    """The facts about a request that are known when it begins.

    Attributes:
        total_steps: its number of steps; None if unknown.
        predicts: the quantity that the model predicts: "velocity", "noise", "clean", "v"; None if unknown.
        history: full steps that a forecast needs; the first steps are full until there are as many.
        cost: time of a cached step relative to a full one; None if not measured.
        finer: factor by which it has more steps than the pipeline requested.
    """

    total_steps: int | None = None
    predicts: str | None = None
    history: int = 1
    cost: float | None = None
    finer: int = 1


class Schedule(ABC):
    """Decides, step by step, which steps are full."""

    needs_signal: ClassVar[bool] = False
    """Whether `wants_full` needs the error of the first module's predicted input."""
    token_stride: int = 1
    """The error is computed on every `token_stride`-th token of that input, as `subsample` selects them."""

    def predictor(self, expansion: Expansion) -> Expansion:
        """Return the expansion that predicts the first module's input; by default `expansion`, the forecaster's."""
        return expansion

    @property
    def needs_total_steps(self) -> str | None:
        """The option that needs the number of steps of a request, as text; None if there is none."""
        return None

    def remark(self, total_steps: int) -> str | None:
        """Return a note if a request of `total_steps` steps cannot follow this schedule; else None."""
        return None

    def start(self, setting: Setting) -> Any:
        """Return the state at the beginning of a request; None if the schedule needs none."""
        return None

    def with_budget(self, full_steps: int | None, speedup: float | None) -> Schedule | None:
        """Return this schedule with one of the two budgets; None if it does not accept the budget."""
        return None

    @property
    def needs_cost(self) -> bool:
        """Whether full and cached steps are timed."""
        return False

    def with_cost(self, state: Any, step: int, cost: float) -> Any:
        """Return the state from step `step` on, when the cost of a cached step is first known within a request."""
        return state

    def short_of_speed(self, setting: Setting) -> str | None:
        """Return a note if the cost of a cached step makes the requested speed impossible; else None."""
        return None

    def wants_signal(self, step: int) -> bool:
        """Return whether the decision on step `step` depends on the error."""
        return False

    def error(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """Return the error of the whole batch, a scalar tensor.

        `numerator` is ‖I - I_T‖₁ and `denominator` ‖I‖₁ of each sample, both (batch,), over all tokens. Where processes
        share the tokens they are sums over processes, on the CPU.
        """
        raise TypeError(f"{type(self).__name__} needs no error signal: leave wants_signal false, or override error")

    @abstractmethod
    def wants_full(self, state: Any, step: int, error: float | None) -> bool:
        """Return whether step `step`, from 0, is full; `error` is its error if `wants_signal` is true, else None."""

    def advance(self, state: Any, step: int, error: float | None, full: bool) -> Any:
        """Return the state after step `step`; `full` may be true where `wants_full` was false."""
        return state


def short_of_warmup(warmup: int, total_steps: int) -> str | None:
    """Return a note if a request is shorter than its warm-up; else None."""
    if total_steps >= warmup:
        return None
    return f"the request has fewer steps ({total_steps}) than the warm-up ({warmup}): all of them are full"


def short_of_budget(full_steps: int | None, total_steps: int) -> str | None:
    """Return a note if the budget covers all steps of a request; else None."""
    if full_steps is None or total_steps > full_steps:
        return None
    return (
        f"nothing is skipped: the request has {total_steps} steps, and full_steps={full_steps}. Ask the pipeline for "
        "more steps, or relcache for fewer full ones"
    )
