"""Plan: an explicit list of full steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relcache.checks import check_whole
from relcache.schedules.base import Schedule, Setting


@dataclass(frozen=True)
class Plan(Schedule):
    """Makes the steps in `full_steps` full and all others cached; steps count from 0.

    With `total_steps` the plan is for requests of this length. A request of another length has the same number of full
    steps at the same fractions of the request, or only full steps if it is too short.

    Raises:
        ValueError: the list is empty, or contains a number twice or a number that is no step.
    """

    full_steps: tuple[int, ...]
    total_steps: int | None = None

    def __init__(self, full_steps: Iterable[int], total_steps: int | None = None) -> None:
        if not isinstance(full_steps, Iterable):
            raise ValueError(f"a Plan takes a list of step numbers, got {full_steps!r}")
        steps = list(full_steps)
        for step in steps:
            check_whole("each full step of a Plan", step, 0)
        object.__setattr__(self, "full_steps", tuple(sorted(steps)))
        object.__setattr__(self, "total_steps", total_steps)
        self.__post_init__()

    def __post_init__(self) -> None:
        if not self.full_steps:
            raise ValueError("a Plan names at least one full step, got none")
        if len(set(self.full_steps)) < len(self.full_steps):
            raise ValueError(f"a Plan names each full step once, got {list(self.full_steps)}")
        if self.total_steps is not None:
            check_whole("the total_steps of a Plan", self.total_steps, self.full_steps[-1] + 1)

    @property
    def needs_total_steps(self) -> str | None:
        return None if self.total_steps is None else f"a Plan of {self.total_steps} steps"

    def remark(self, total_steps: int) -> str | None:
        if self.total_steps is not None:
            if total_steps == self.total_steps:
                return None
            return (
                f"the Plan is for {self.total_steps} steps: its full steps are moved to the same fractions of the "
                f"{total_steps} steps of this request"
            )
        beyond = [step for step in self.full_steps if step >= total_steps]
        if not beyond:
            return None
        return f"the Plan names steps that the request of {total_steps} steps does not have: {beyond}"

    def start(self, setting: Setting) -> tuple[int, ...]:
        if self.total_steps is None or setting.total_steps in (None, self.total_steps):
            return self.full_steps
        return resampled(self.full_steps, self.total_steps, setting.total_steps or 1, setting.history)

    def wants_full(self, state: tuple[int, ...], step: int, error: float | None) -> bool:
        return step in state


def resampled(steps: tuple[int, ...], total: int, wanted: int, history: int = 1) -> tuple[int, ...]:
    """Return the full `steps` of `total` moved to the same fractions of `wanted` steps, all different.

    If the first `history` of `total` steps are full, so are those of `wanted`, as a forecast may need them.
    """
    begin = history if steps[:history] == tuple(range(history)) else 0
    scale, moved = (wanted - 1) / max(total - 1, 1), [-1]
    count = min(len(steps), wanted)
    for index, step in enumerate(steps[:count]):
        most = wanted - (count - index)  # leaves room for the later steps
        moved.append(index if index < begin else min(max(round(step * scale), moved[-1] + 1), most))
    return tuple(moved[1:])
