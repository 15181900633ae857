"""The search for a threshold, on samplers whose number of full steps is a known function of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relcache import RFC
from relcache.bench.calibration import CLOSE, Calibration, calibrate


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
    found = calibrate(sampler, RFC(order=2, threshold=start), 14, [0], [0], most=40)
    assert edge * 0.999 <= found <= edge * CLOSE
    assert sampler.number(found) == 14


def test_a_number_that_is_leapt_over_gets_the_nearest() -> None:
    sampler: Any = Falling(lambda threshold: 20 if threshold < 0.3 else 13)
    known = Calibration()
    found = calibrate(sampler, RFC(order=2, threshold=0.1), 14, [0], [0], known)
    assert known.tried[found] == 13
    assert found == min(threshold for threshold, number in known.tried.items() if number == 13)
    assert sampler.runs <= 12


def test_what_is_known_is_not_run_again() -> None:
    sampler: Any = Falling(lambda threshold: 50 / (1 + threshold) // 1)
    known = Calibration()
    method = RFC(order=2, threshold=0.1)
    found = calibrate(sampler, method, 14, [0], [0], known)
    before = sampler.runs
    assert calibrate(sampler, method, 14, [0], [0], known) == found
    assert sampler.runs == before


def test_every_step_in_full_needs_no_search() -> None:
    sampler: Any = Falling(lambda threshold: pytest.fail("sampled"))
    assert calibrate(sampler, RFC(order=2, threshold=0.1), 50, [0], [0]) == 0.0
