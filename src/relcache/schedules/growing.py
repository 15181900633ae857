"""Growing: a budget of full steps, dense where errors weigh most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from relcache.checks import check_number, check_whole
from relcache.schedules.base import Schedule, Setting, short_of_budget

GROWTH = {"velocity": 1.7, "noise": 0.9}
FINE, FINE_GROWTH = 64, 2.0  # in flow matching with more steps than so many, where first gaps can be shorter
LONGER = 1.7  # times: the most that one gap is longer than the one before
UNKNOWN = 1.0  # growth where nothing shows what the model predicts
SUPPOSED = 0.05  # cost of a cached step, of a full one, until it has been measured


class Laid(NamedTuple):
    """Full steps that are still to come, how many there were, and what the request is like."""

    planned: tuple[int, ...]
    done: int
    setting: Setting


@dataclass(frozen=True)
class Growing(Schedule):
    """Exactly `full_steps` full steps, laid by the number of steps and by what the model predicts alone.

    Full step i of K, from 0, is at `L (i / (K - 1))^growth`, where L is close to the last step. An error made early
    in flow matching grows until the end, so gaps grow there: 1.7, and 2 with more than 64 steps. Under noise prediction
    the first steps, at high noise, are made good by the next full step, so gaps are about even: 0.9. Where the model's
    prediction is unknown, 1. Needs no signal and no synchronisation, and depends on no batch mate.

    Without `full_steps` the budget is `default_budget`. With `speedup` it is as large as lets the loop run so many
    times faster, by the times of full and cached steps that the first request of each size measures.

    Where something else makes a step full, such as a branch that comes later, the next planned full step is cached
    instead. Steps beyond the number that was told are full.

    Raises:
        ValueError: `full_steps` below 1, a `speedup` not above 1, a `growth` not above 0, or both budgets.
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
            if self.full_steps is not None:
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

    def start(self, setting: Setting) -> Laid:
        return Laid(self._lay(setting), 0, setting)

    def wants_full(self, state: Laid, step: int, error: float | None) -> bool:
        total = state.setting.total_steps
        return step in state.planned or (total is not None and step >= total)

    def advance(self, state: Laid, step: int, error: float | None, full: bool) -> Laid:
        if not full:
            return state
        later = tuple(planned for planned in state.planned if planned > step)
        return state._replace(planned=later if step in state.planned else later[1:], done=state.done + 1)

    def with_cost(self, state: Laid, step: int, cost: float) -> Laid:
        setting = state.setting._replace(cost=cost)
        due = max(self._budget(setting) - state.done, 0)
        later = [planned for planned in self._lay(setting) if planned >= step]
        while len(later) < due and step + len(later) < (setting.total_steps or 0):
            later = with_one_more(later, step, setting.total_steps or 0)
        return Laid(tuple(later[len(later) - due :]), state.done, setting)

    def short_of_speed(self, setting: Setting) -> str | None:
        if self.speedup is None or setting.cost is None or setting.total_steps is None:
            return None
        asked = max(1, setting.total_steps // setting.finer)
        reached = asked / (1 + setting.cost * (setting.total_steps - 1))
        if reached >= self.speedup:
            return None
        return (
            f"speedup={self.speedup:g} cannot be reached: a cached step takes {setting.cost:.0%} of a full one, so one "
            f"full step of {setting.total_steps} makes {reached:.2g}: take granularity='stack', or compile"
        )

    def _lay(self, setting: Setting) -> tuple[int, ...]:
        return laid(setting, self._budget(setting), self.growth)

    def _budget(self, setting: Setting) -> int:
        total = setting.total_steps or 1
        asked = max(1, total // setting.finer)
        if self.speedup is None:
            return default_budget(asked) if self.full_steps is None else self.full_steps
        cost = SUPPOSED if setting.cost is None else setting.cost
        return max(1, math.floor((asked / self.speedup - cost * total) / (1 - cost) + 1e-9)) if cost < 1 else 1


def default_budget(total_steps: int) -> int:
    """Full steps where nothing is asked for: 14 of 50, 9 of 28, 7 of 20, 5 of 10; all of 6 or fewer."""
    return total_steps if total_steps <= 6 else int(0.22 * total_steps + 3)


def laid(setting: Setting, full_steps: int, growth: float | None = None) -> tuple[int, ...]:
    """The full steps of a request, by what its model predicts."""
    total, usual = setting.total_steps or 1, GROWTH.get(setting.predicts or "", UNKNOWN)
    if setting.predicts == "velocity" and total > FINE:
        usual = FINE_GROWTH
    return growing_steps(total, full_steps, growth or usual, setting.history)


def growing_steps(total: int, full_steps: int, growth: float, history: int = 1) -> tuple[int, ...]:
    """`full_steps` of `total` steps, from 0, with gaps that grow as the power `growth` has it.

    The first `history` are full, so fewer than that cannot be had. After the last one some 0.4 of a mean gap is cached,
    which nothing corrects. Where gaps grow, none is shorter than the one before it, nor more than 1.7 times as long or
    one step longer, if that can be: a slope over few steps says little about many.
    """
    count = min(total, max(full_steps, history))
    first = min(history, count) - 1  # of these steps the last
    behind = round(0.4 * total / count) if growth >= 1 else int(0.55 * total / count)
    last = max(total - 1 - behind, count - 1)
    steps = list(range(first + 1))
    for index in range(first + 1, count):
        wanted = round(first + (last - first) * ((index - first) / (count - 1 - first)) ** growth)
        steps.append(max(min(wanted, last - (count - 1 - index)), steps[-1] + 1))
    if growth < 1:
        return tuple(steps)
    gaps = sorted(later - earlier for earlier, later in pairwise(steps[first:]))
    for _ in range(total):  # as many moves as there are steps are enough
        short = next(
            (place for place, (one, two) in enumerate(pairwise(gaps)) if two > max(LONGER * one, one + 1)), None
        )
        if short is None or gaps[-1] - gaps[short] < 2:
            break
        gaps[short] += 1
        gaps[-1] -= 1
        gaps.sort()
    return (*steps[:first], *accumulate(gaps, initial=first))


def with_one_more(steps: list[int], first: int, total: int) -> list[int]:
    """The same, with one more step in the middle of the widest gap from `first` on."""
    ends = [first - 1, *steps, total]
    at = max(range(len(ends) - 1), key=lambda place: ends[place + 1] - ends[place])
    return [*steps[:at], (ends[at] + ends[at + 1]) // 2, *steps[at:]]
