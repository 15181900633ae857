"""Plan: an explicit list of full steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relcache.schedules.base import Schedule, check_count


@dataclass(frozen=True)
class Plan(Schedule):
    """The steps in `full_steps` are full, all others cached; the step numbers count from 0.

    Raises:
        ValueError: an empty list, a number that is not a step, or a number twice.
    """

    full_steps: tuple[int, ...]

    def __init__(self, full_steps: Iterable[int]) -> None:
        if not isinstance(full_steps, Iterable):
            raise ValueError(f"a Plan takes a list of step numbers, got {full_steps!r}")
        steps = list(full_steps)
        for step in steps:
            check_count("each full step of a Plan", step, 0)
        object.__setattr__(self, "full_steps", tuple(sorted(steps)))
        self.__post_init__()

    def __post_init__(self) -> None:
        if not self.full_steps:
            raise ValueError("a Plan names at least one full step, got none")
        if len(set(self.full_steps)) < len(self.full_steps):
            raise ValueError(f"a Plan names each full step once, got {list(self.full_steps)}")

    def remark(self, total_steps: int) -> str | None:
        beyond = [step for step in self.full_steps if step >= total_steps]
        if not beyond:
            return None
        return f"the Plan names steps that the request of {total_steps} steps does not have: {beyond}"

    def wants_full(self, state: None, step: int, error: float | None) -> bool:
        return step in self.full_steps
