"""The search for a threshold, on samplers whose number of full steps is a known function of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import relcache
from relcache import RFC
from relcache.bench.sampling.budgets import (
    CLOSE_RATIO,
    TriedThresholds,
    at_budget,
    check_budget,
    count_full_steps,
    interval_for,
    spacing_for,
    threshold_for,
)
from relcache.bench.tables import NOTE, formatted, off_target


class Falling:
    """A sampler of 50 steps whose number of full steps is a function of the threshold."""

    steps = 50

    def __init__(self, number: Callable[[float], float]):
        self.number, self.runs = number, 0

    def run(self, method: Any, seeds: list[int], conditions: list[int]) -> Any:
        self.runs += 1
        return type("Run", (), {"nfc": self.number(method.schedule.threshold)})()


@given(edge=st.floats(0.01, 20), width=st.floats(1.1, 2), start=st.floats(0.05, 2))
def test_the_smallest_threshold_of_those_that_give_the_number(edge: float, width: float, start: float) -> None:
    sampler: Any = Falling(lambda threshold: 20 if threshold < edge else 14 if threshold < width * edge else 9)
    found = threshold_for(sampler, RFC(order=2, threshold=start), 14, [0], [0], most=40)
    assert edge * 0.999 <= found <= edge * CLOSE_RATIO
    assert sampler.number(found) == 14


def test_a_number_that_is_leapt_over_gets_the_nearest() -> None:
    sampler: Any = Falling(lambda threshold: 20 if threshold < 0.3 else 13)
    known = TriedThresholds()
    found = threshold_for(sampler, RFC(order=2, threshold=0.1), 14, [0], [0], known)
    assert known.tried[found] == 13
    assert found == min(threshold for threshold, number in known.tried.items() if number == 13)
    assert sampler.runs <= 12


def test_what_is_known_is_not_run_again() -> None:
    sampler: Any = Falling(lambda threshold: 50 / (1 + threshold) // 1)
    known = TriedThresholds()
    method = RFC(order=2, threshold=0.1)
    found = threshold_for(sampler, method, 14, [0], [0], known)
    before = sampler.runs
    assert threshold_for(sampler, method, 14, [0], [0], known) == found
    assert sampler.runs == before


@pytest.mark.parametrize("broken_off", range(1, 12))
def test_a_search_that_was_broken_off_ends_at_the_same_threshold(broken_off: int) -> None:
    """No threshold gives 14, so every run counts: one more than the unbroken search would change the result."""
    sampler: Any = Falling(lambda threshold: 50 / (1 + threshold))
    method, known = RFC(order=2, threshold=0.1), TriedThresholds()
    found = threshold_for(sampler, method, 14, [0], [0], known)
    assert sampler.runs == 12
    kept = dict(list(known.tried.items())[: broken_off + 1])
    assert threshold_for(sampler, method, 14, [0], [0], TriedThresholds(remembered=kept)) == found
    assert sampler.runs == 12 + 12 - broken_off


def test_every_step_in_full_needs_no_search() -> None:
    sampler: Any = Falling(lambda threshold: pytest.fail("sampled"))
    assert threshold_for(sampler, RFC(order=2, threshold=0.1), 50, [0], [0]) == 0.0


@given(steps=st.integers(3, 60), nfc=st.integers(2, 60), warmup=st.integers(1, 4))
def test_intervals_give_the_number_where_one_can(steps: int, nfc: int, warmup: int) -> None:
    """By the published phase where that gives it; by one near it otherwise; or else the nearest number."""
    if not warmup <= nfc <= steps:
        return
    found = spacing_for(nfc, steps, None, warmup)
    interval, first = found["interval"], found.get("phase")
    published = interval_for(nfc, steps, None, warmup)
    count = count_full_steps(interval, steps, first, warmup)
    if count_full_steps(published, steps, None, warmup) == nfc:
        assert found == {"interval": published}
    elif first is None:
        assert found == {"interval": published}
        assert count != nfc
    else:
        assert count == nfc
        assert warmup <= first <= warmup - 1 + 2 * interval  # the first gap is less than two intervals
    plan = relcache.Interval(interval, warmup, first)
    assert sum(plan.wants_full(None, step, None) for step in range(steps)) == count


def test_published_intervals_stay() -> None:
    assert [spacing_for(nfc, 50) for nfc in (14, 11, 10, 8, 7)] == [{"interval": n} for n in (4, 5, 6, 7, 9)]
    assert spacing_for(6, 12) == {"interval": 2, "phase": 4}  # 7 by the published phase
    assert spacing_for(40, 50) == {"interval": 1}  # no phase near the published one gives it
    assert spacing_for(8, 50, phase=3) == {"interval": 8}  # a phase that is given stays


@pytest.mark.parametrize(
    ("config", "nfc", "message"),
    [
        ({"method": "fora", "interval": 4}, 5, "fora has interval=4, which decides its full steps"),
        ({"method": "rfc", "threshold": 0.1}, 5, "rfc has threshold=0.1, which decides its full steps"),
        ({"method": "plan", "full_steps": [0, 1]}, 5, r"plan has full_steps=\[0, 1\], which decides"),
        ({"method": "fora"}, 1, "is between the warm-up, 2, and 10; got 1"),
        ({"method": "fora"}, 11, "is between the warm-up, 2, and 10; got 11"),
        ({"method": "rfc", "warmup": 4}, 3, "is between the warm-up, 4, and 10; got 3"),
    ],
)
def test_budgets_that_cannot_be(config: dict[str, Any], nfc: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_budget(config, nfc, 10)
    sampler = type("Sampler", (), {"steps": 10})()
    with pytest.raises(ValueError, match=message):
        at_budget(config, nfc, sampler, [], [])


def test_rows_that_are_not_at_equal_cost() -> None:
    def row(nfc: float, target: int | None) -> dict[str, Any]:
        return {"nfc": nfc, "nfc_target": target}

    full = row(12, None)
    assert off_target([full, row(6, 6), row(7, 6), row(6.001, 6), row(5.75, 6)]) == [False, False, True, False, True]
    assert off_target([full, row(6, 6), row(5, None), row(6, None)]) == [False, False, True, False]  # as they are given
    assert off_target([full, row(5, None)]) == [False, False]  # nothing was asked for
    assert off_target([]) == []
    cells, note = formatted([full, row(6, 6), row(7, 6)], [("full", "nfc", ".2f"), ("asked", "nfc_target", "")])
    assert cells == [["12.00", "–"], ["6.00", "6"], ["7.00*", "6"]]
    assert note == NOTE
    assert formatted([full, row(6, 6)], [("full", "nfc", "")])[1] == ""


def test_a_floor_ends_the_search_at_once() -> None:
    """A method whose gaps are bounded has a least number; every lower target gets the smallest threshold of it."""
    sampler: Any = Falling(lambda threshold: 50 if threshold < 0.02 else 20)
    known = TriedThresholds()
    found = [threshold_for(sampler, RFC(order=2, threshold=0.1), nfc, [0], [0], known) for nfc in (14, 8, 6)]
    assert sampler.runs <= 12
    assert set(found) == {min(threshold for threshold, number in known.tried.items() if number == 20)}
