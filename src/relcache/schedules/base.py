"""What every schedule is. Knows nothing of forecasters, models or the session.

A schedule answers: when is a step computed in full? It holds options, never history: `start` makes the state of one
request, `wants_full` reads it before a step, `advance` returns it after the decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor


class Schedule(ABC):
    """Decides, step by step, which steps are full."""

    needs_signal: ClassVar[bool] = False
    """Whether `wants_full` needs the error of the first module's predicted input at steps past the warm-up."""
    token_stride: int = 1
    """The error runs over each token of that input whose number this divides."""
    full_last: int = 0
    """How many last steps are always full; above 0, the session has to know how many steps a request has."""

    def remark(self, total_steps: int) -> str | None:
        """What is to be said of a request of `total_steps` steps that cannot follow this schedule to its end."""
        return None

    def start(self) -> Any:
        """State at the beginning of a request; None where the schedule keeps none."""
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


def check_count(what: str, value: object, at_least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{what} is a whole number of at least {at_least}, got {value!r}")


def short_of_warmup(warmup: int, total_steps: int) -> str | None:
    """What is to be said of a request that is shorter than its warm-up."""
    if total_steps >= warmup:
        return None
    return f"the request has fewer steps ({total_steps}) than the warm-up ({warmup}): all of them are full"
