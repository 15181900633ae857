"""Growing: spend a budget of full steps where errors weigh most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

from relcache.checks import check_number, check_whole
from relcache.schedules.base import Schedule, Setting, short_of_budget

GROWTH = {"velocity": 1.7, "noise": 0.9}
FINE, FINE_GROWTH = 64, 2.0  # in flow matching with more than 64 steps, where the first gaps can be shorter
LONGER = 1.7  # greatest ratio of a gap to the previous one
UNKNOWN = 1.0  # growth where the model's prediction is unknown
SUPPOSED = 0.05  # cost of a cached step relative to a full one, until it is measured


class GrowingState(NamedTuple):
    """The full steps still planned, the number of completed full steps, and the setting of the request."""

    planned: tuple[int, ...]
    done: int
    setting: Setting


@dataclass(frozen=True)
class Growing(Schedule):
    """Plans exactly `full_steps` full steps from the number of steps and the kind of prediction alone.

    Full step i of K, from 0, is at `L (i / (K - 1))^growth`, where L is close to the last step. In flow matching an
    early error grows until the end, so gaps grow: growth is 1.7, or 2 with more than 64 steps. Under noise prediction
    the next full step corrects errors of the first steps, at high noise, so gaps are nearly even: 0.9. If the kind of
    prediction is unknown, growth is 1. The schedule needs no signal and no synchronisation, and ignores batch mates.

    Without `full_steps` the budget is `default_budget`. With `speedup` it is the largest budget that makes the loop
    `speedup` times faster, by the times of full and cached steps in the first request of each size.

    If something else makes a step full, such as a branch that begins late, the next planned full step is cached
    instead. Steps beyond the known number are full.

    Raises:
        ValueError: `full_steps` is below 1, `speedup` not above 1, `growth` not above 0, or both budgets are set.
    """

    full_steps: int | None = None
    growth: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        if self.full_steps is not None:
            check_whole("the full_steps of Growing", self.full_steps, 1)
        if self.growth is not None:
            check_number("the growth of Growing", self.growth, above=0)
        if self.speedup is not None:
            check_number("the speedup of Growing", self.speedup, above=1)
        if self.full_steps is not None and self.speedup is not None:
            raise ValueError("a budget is either full_steps or speedup, not both")

    @property
    def needs_cost(self) -> bool:
        return self.speedup is not None

    @property
    def needs_total_steps(self) -> str:
        if self.speedup is not None:
            return f"speedup={self.speedup:g}"
        return "the default budget" if self.full_steps is None else f"full_steps={self.full_steps}"

    def remark(self, total_steps: int) -> str | None:
        return short_of_budget(self._budget(Setting(total_steps)), total_steps)

    def start(self, setting: Setting) -> GrowingState:
        return GrowingState(self._planned(setting), 0, setting)

    def with_budget(self, full_steps: int | None, speedup: float | None) -> Growing:
        return replace(self, full_steps=full_steps, speedup=speedup)

    def wants_full(self, state: GrowingState, step: int, error: float | None) -> bool:
        total = state.setting.total_steps
        return step in state.planned or (total is not None and step >= total)

    def advance(self, state: GrowingState, step: int, error: float | None, full: bool) -> GrowingState:
        if not full:
            return state
        later = tuple(planned for planned in state.planned if planned > step)
        return state._replace(planned=later if step in state.planned else later[1:], done=state.done + 1)

    def with_cost(self, state: GrowingState, step: int, cost: float) -> GrowingState:
        setting = state.setting._replace(cost=cost)
        due, total = max(self._budget(setting) - state.done, 0), setting.total_steps or 0
        later = [planned for planned in self._planned(setting) if planned >= step]
        while len(later) < due and step + len(later) < total:
            later = with_one_more(later, step, total)
        return GrowingState(tuple(later[len(later) - due :]), state.done, setting)

    def short_of_speed(self, setting: Setting) -> str | None:
        if self.speedup is None or setting.cost is None or setting.total_steps is None:
            return None
        requested = max(1, setting.total_steps // setting.finer)
        reached = requested / (1 + setting.cost * (setting.total_steps - 1))
        if reached >= self.speedup:
            return None
        return (
            f"speedup={self.speedup:g} cannot be reached: a cached step takes {setting.cost:.0%} of a full one, so one "
            f"full step of {setting.total_steps} gives {reached:.2g}: take granularity='stack', or compile"
        )

    def _planned(self, setting: Setting) -> tuple[int, ...]:
        return planned_steps(setting, self._budget(setting), self.growth)

    def _budget(self, setting: Setting) -> int:
        total = setting.total_steps or 1
        requested = max(1, total // setting.finer)
        if self.speedup is None:
            return default_budget(requested) if self.full_steps is None else self.full_steps
        cost = SUPPOSED if setting.cost is None else setting.cost
        return max(1, math.floor((requested / self.speedup - cost * total) / (1 - cost) + 1e-9)) if cost < 1 else 1


def default_budget(total_steps: int) -> int:
    """Return the default number of full steps: 14 of 50, 9 of 28, 7 of 20, 5 of 10; all of 6 or fewer."""
    return total_steps if total_steps <= 6 else int(0.22 * total_steps + 3)


def planned_steps(setting: Setting, full_steps: int, growth: float | None = None) -> tuple[int, ...]:
    """Return the full steps of a request; the default growth depends on what its model predicts."""
    total, usual = setting.total_steps or 1, GROWTH.get(setting.predicts or "", UNKNOWN)
    if setting.predicts == "velocity" and total > FINE:
        usual = FINE_GROWTH
    return growing_steps(total, full_steps, growth or usual, setting.history)


def growing_steps(total: int, full_steps: int, growth: float, history: int = 1) -> tuple[int, ...]:
    """Return `full_steps` of `total` steps, from 0, with positions that grow as the power `growth`.

    The first `history` steps are always full, even beyond the budget. About 0.4 of a mean gap follows the last full
    step; nothing corrects it. With a growth of 1 or more, no gap is shorter than the previous one. If possible, none is
    more than 1.7 times as long, or one step longer, as a slope over few steps says little about many.
    """
    count = min(total, max(full_steps, history))
    first = min(history, count) - 1  # last of the first steps
    after = round(0.4 * total / count) if growth >= 1 else int(0.55 * total / count)
    last = max(total - 1 - after, count - 1)
    steps = list(range(first + 1))
    for index in range(first + 1, count):
        position = round(first + (last - first) * ((index - first) / (count - 1 - first)) ** growth)
        steps.append(max(min(position, last - (count - 1 - index)), steps[-1] + 1))
    if growth < 1:
        return tuple(steps)
    gaps = sorted(later - earlier for earlier, later in pairwise(steps[first:]))
    for _ in range(total):  # this many moves are enough
        short = next(
            (index for index, (gap, later) in enumerate(pairwise(gaps)) if later > max(LONGER * gap, gap + 1)), None
        )
        if short is None or gaps[-1] - gaps[short] < 2:
            break
        gaps[short] += 1
        gaps[-1] -= 1
        gaps.sort()
    return (*steps[:first], *accumulate(gaps, initial=first))


def with_one_more(steps: list[int], first: int, total: int) -> list[int]:
    """Return `steps` with one more in the middle of the widest gap from `first` on."""
    ends = [first - 1, *steps, total]
    widest = max(range(len(ends) - 1), key=lambda index: ends[index + 1] - ends[index])
    return [*steps[:widest], (ends[widest] + ends[widest + 1]) // 2, *steps[widest:]]
