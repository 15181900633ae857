"""When a step is full: the published phases, the budget's arithmetic, fixed plans."""

from __future__ import annotations

import pytest
import torch
from scripted import play, rows

from relcache import Always, ErrorBudget, Interval, Method, Plan, Reuse, Schedule, Taylor
from relcache.forecasters.expansion import Expansion
from relcache.schedules.base import Setting


def full_steps(schedule: Schedule, errors: list[float | None] | int) -> list[int]:
    """Steps that the schedule asks for, with the error of each step that it asked for one."""
    errors = [0.0] * errors if isinstance(errors, int) else errors
    assert schedule.remark(len(errors)) is None
    state, chosen = schedule.start(Setting(len(errors))), []
    for step, value in enumerate(errors):
        error = value if schedule.wants_signal(step) else None
        full = schedule.wants_full(state, step, error)
        state = schedule.advance(state, step, error, full)
        if full:
            chosen.append(step)
    return chosen


@pytest.mark.parametrize(
    ("warmup", "interval", "count"),
    [
        *((2, interval, count) for interval, count in ((4, 14), (5, 11), (6, 10), (7, 8), (9, 7))),  # DiT
        (3, 4, 14),  # FLUX
        (3, 9, 8),
        (1, 3, 17),  # FORA on FLUX
        (1, 6, 9),  # HunyuanVideo
        (1, 8, 7),
    ],
)
def test_published_numbers_of_full_steps(warmup: int, interval: int, count: int) -> None:
    assert len(full_steps(Interval(interval, warmup), 50)) == count


def test_published_phase() -> None:
    assert full_steps(Interval(4), 50) == [0, 1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49]
    assert full_steps(Interval(4, warmup=3), 20) == [0, 1, 2, 6, 10, 14, 18]
    assert full_steps(Interval(6, warmup=1), 50) == [0, 6, 12, 18, 24, 30, 36, 42, 48]


def test_other_phase() -> None:
    """The phase of diffusers' hook: two steps after the warm-up."""
    assert full_steps(Interval(4, phase=3), 50) == [0, 1, 3, 7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47]
    assert full_steps(Interval(4, phase=5), 50) == full_steps(Interval(4), 50)


def test_interval_of_one_is_always() -> None:
    assert full_steps(Interval(1), 7) == full_steps(Always(), 7) == list(range(7))


def test_budget_is_spent_when_the_sum_is_above_the_threshold() -> None:
    """Quarters add up without rounding: 0.25 + 0.25 = 0.5 is not above 0.5, the next one is."""
    assert full_steps(ErrorBudget(0.5), [0.25] * 12) == [0, 1, 4, 7, 10]


def test_budget_restarts_after_each_full_step() -> None:
    """The error of the full step itself belongs to the sum that it closes, not to the next one."""
    errors = [0.0, 0.0, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 1.5]
    assert full_steps(ErrorBudget(1.0), errors) == [0, 1, 2, 5, 8]


def test_budget_of_nothing() -> None:
    """Threshold 0: full wherever there is any error at all."""
    assert full_steps(ErrorBudget(0), [0.0, 0.0, 0.0, 1e-9, 0.0, 0.1]) == [0, 1, 3, 5]


def test_budget_asks_for_no_signal_in_the_warm_up() -> None:
    budget = ErrorBudget(1.0, warmup=3)
    assert [budget.wants_signal(step) for step in range(5)] == [False, False, False, True, True]
    assert full_steps(budget, [9.0, 9.0, 9.0, 0.0, 0.0]) == [0, 1, 2]
    assert full_steps(ErrorBudget(1.0, warmup=1), [0.0] * 5) == [0]


def test_longest_gap() -> None:
    assert full_steps(ErrorBudget(9.0, longest_gap=3), [0.0] * 11) == [0, 1, 4, 7, 10]
    assert full_steps(ErrorBudget(9.0, longest_gap=1), [0.0] * 4) == [0, 1, 2, 3]
    assert full_steps(ErrorBudget(0.5, longest_gap=3), [0, 0, 0.6, 0, 0, 0, 0.6, 0, 0, 0]) == [0, 1, 2, 5, 6, 9]


def test_forced_full_step_restarts_the_budget() -> None:
    """A step that something else forced is as full as any other."""
    budget = ErrorBudget(1.0)
    state = budget.advance(budget.start(Setting()), 2, 0.9, full=False)
    assert budget.wants_full(state, 3, 0.2)
    state = budget.advance(state, 3, None, full=True)
    assert not budget.wants_full(state, 4, 0.9)


def test_error_of_a_batch() -> None:
    """Per sample the mean of the ratios; over the tensor the ratio of the sums."""
    numerator, denominator = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 30.0])
    assert float(ErrorBudget(1.0).error(numerator, denominator)) == pytest.approx((0.5 + 0.1) / 2)
    assert float(ErrorBudget(1.0, norm="tensor").error(numerator, denominator)) == pytest.approx(4 / 32)


def test_plan() -> None:
    assert full_steps(Plan([5, 0, 2]), 8) == [0, 2, 5]
    assert Plan([5, 0, 2]) == Plan((0, 2, 5))
    assert full_steps(Plan(range(0, 8, 3)), 8) == [0, 3, 6]


def test_fixed_schedules_ask_for_no_signal() -> None:
    for schedule in (Always(), Interval(3), Plan([0])):
        assert not any(schedule.wants_signal(step) for step in range(10))
        with pytest.raises(TypeError, match="needs no error signal"):
            schedule.error(torch.ones(1), torch.ones(1))


class Predicted(ErrorBudget):
    """Predicts the input by an expansion of its own."""

    def __init__(self, expansion: Expansion, warmup: int) -> None:
        super().__init__(1e9, warmup)
        object.__setattr__(self, "expansion", expansion)

    def predictor(self, expansion: Expansion) -> Expansion:
        return self.expansion


def test_a_schedule_may_predict_the_input_by_an_expansion_of_its_own() -> None:
    inputs = [rows(1.0), rows(3.0), rows(6.0)]
    for schedule, error in ((Predicted(Expansion(0), 2), 3 / 6), (ErrorBudget(1e9), 1 / 6)):
        _, report = play(Method(Taylor(1), schedule), inputs, inputs)
        assert report.signal == [None, None, pytest.approx(error)]
    squares = [rows(float(step**2)) for step in range(1, 6)]
    _, report = play(Method(Reuse(), Predicted(Expansion(2, "newton"), 3)), squares, squares)
    assert report.signal == [None, None, None, pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6)]
