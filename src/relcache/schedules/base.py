"""What every schedule is. Knows nothing of forecasters, models or the session.

A schedule answers: when is a step computed in full? It holds options, never history: `start` makes the state of one
request from its `Setting`, `wants_full` reads it before a step, `advance` returns it after the decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


class Setting(NamedTuple):
    """What is known of a request when it begins.

    Attributes:
        total_steps: its number of steps; None if nothing tells.
        predicts: what its scheduler takes the model's output for: "velocity", "noise", "clean", "v"; None if unknown.
        history: full steps that a forecast needs. Until there are so many, every step is full.
        cost: time of a cached step, of a full one's; None if it has not been measured.
        finer: how many times as many steps as the pipeline was asked for.
    """

    total_steps: int | None = None
    predicts: str | None = None
    history: int = 1
    cost: float | None = None
    finer: int = 1


class Schedule(ABC):
    """Decides, step by step, which steps are full."""

    needs_signal: ClassVar[bool] = False
    """Whether `wants_full` needs the error of the first module's predicted input at steps past the warm-up."""
    token_stride: int = 1
    """The error runs over each token of that input whose number this divides."""

    @property
    def needs_total_steps(self) -> str | None:
        """The option for which the number of a request's steps has to be known, as text; None if there is none."""
        return None

    def remark(self, total_steps: int) -> str | None:
        """What is to be said of a request of `total_steps` steps that cannot follow this schedule to its end."""
        return None

    def start(self, setting: Setting) -> Any:
        """State at the beginning of a request; None where the schedule keeps none."""
        return None

    @property
    def needs_cost(self) -> bool:
        """Whether full and cached steps are to be timed."""
        return False

    def with_cost(self, state: Any, step: int, cost: float) -> Any:
        """State from step `step` on, where the cost of a cached step has become known in the middle of a request."""
        return state

    def short_of_speed(self, setting: Setting) -> str | None:
        """What is to be said where the cost of a cached step leaves the schedule short of what was asked for."""
        return None

    def wants_signal(self, step: int) -> bool:
        """Whether the error signal has a say in step `step`."""
        return False

    def error(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """The one error, a scalar tensor, of the whole batch from the signal's sums, each of shape (batch,).

        `numerator` is ‖I - I_T‖₁ and `denominator` ‖I‖₁ of each sample, summed over the tokens that this process sees:
        nothing is reduced over ranks, and a transformer that ranks share by its sequence is refused.
        """
        raise TypeError(f"{type(self).__name__} asks for no signal")

    @abstractmethod
    def wants_full(self, state: Any, step: int, error: float | None) -> bool:
        """Whether step `step` (from 0) is to be full; `error` is the signal at this step if it was asked for."""

    def advance(self, state: Any, step: int, error: float | None, full: bool) -> Any:
        """State after step `step`, which was computed in full if `full` (also where something else forced it)."""
        return state


def short_of_warmup(warmup: int, total_steps: int) -> str | None:
    """What is to be said of a request that is shorter than its warm-up."""
    if total_steps >= warmup:
        return None
    return f"the request has fewer steps ({total_steps}) than the warm-up ({warmup}): all of them are full"


def short_of_budget(full_steps: int | None, total_steps: int) -> str | None:
    """What is to be said of a request that has no more steps than may be full."""
    if full_steps is None or total_steps > full_steps:
        return None
    return (
        f"nothing is skipped: the request has {total_steps} steps, and full_steps={full_steps}. Ask the pipeline for "
        "more steps, or relcache for fewer full ones"
    )
