"""One table: every forecaster with every schedule."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from tiny import relative_error, run_loop, tiny_dit
from torch import Tensor

import relcache
from relcache import (
    Always,
    ErrorBudget,
    Forecaster,
    Growing,
    Interval,
    Linear,
    Newton,
    Plan,
    Relational,
    Report,
    Reuse,
    Schedule,
    Taylor,
)

STEPS = 12

FORECASTERS = [
    Reuse(),
    Linear(0.8),
    Taylor(1),
    Taylor(2),
    Newton(2),
    Newton(3),
    Relational(1),
    Relational(2),
    Relational(2, "newton"),
    Relational(2, norm="tensor"),
]

Expected = Callable[[Report, Forecaster], set[int]]


def after_warmup(interval: int, warmup: int, phase: int) -> Expected:
    return lambda report, forecaster: set(range(warmup)) | set(range(phase, STEPS, interval))


def by_error(threshold: float, warmup: int = 2, longest_gap: int = STEPS, full_last: int = 0) -> Expected:
    """Sum up the errors in the report as the definition does."""

    def full_steps(report: Report, forecaster: Forecaster) -> set[int]:
        expected = set(range(warmup)) | set(range(STEPS - full_last, STEPS))
        spent, gap = 0.0, 0
        for step in range(warmup, STEPS):
            spent, gap = spent + (report.signal[step] or 0.0), gap + 1
            if spent > threshold or gap == longest_gap:
                expected.add(step)
            if step in report.full_steps:
                spent, gap = 0.0, 0
        return expected

    return full_steps


# Each schedule, and the full steps that its definition asks for.
SCHEDULES: list[tuple[Schedule, Expected]] = [
    (Always(), lambda report, forecaster: set(range(STEPS))),
    (Interval(3), after_warmup(3, 2, 4)),
    (Interval(4, warmup=1), after_warmup(4, 1, 4)),
    (Interval(4, phase=3), after_warmup(4, 2, 3)),
    (Plan([0, 5, 6]), lambda report, forecaster: {0, 5, 6}),
    (Growing(5), lambda report, forecaster: {0, 1, 4, 7, 10} if forecaster.full_steps_needed > 1 else {0, 2, 4, 7, 10}),
    (ErrorBudget(2.0), by_error(2.0)),
    (ErrorBudget(2.0, warmup=1, longest_gap=4), by_error(2.0, warmup=1, longest_gap=4)),
    (ErrorBudget(2.0, norm="tensor", full_last=2), by_error(2.0, full_last=2)),
]


@cache
def full_picture() -> Tensor:
    return run_loop(tiny_dit(), steps=STEPS)


@pytest.mark.parametrize(
    ("schedule", "expected"), SCHEDULES, ids=lambda value: repr(value) if isinstance(value, Schedule) else ""
)
@pytest.mark.parametrize("forecaster", FORECASTERS, ids=repr)
def test_every_forecaster_with_every_schedule(forecaster: Forecaster, schedule: Schedule, expected: Expected) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, forecaster=forecaster, schedule=schedule, num_inference_steps=STEPS)
    picture = run_loop(model, steps=STEPS)
    report = handle.report()

    forced = {1} if forecaster.expansion.order > 0 else set()  # a difference needs two full steps
    assert bool(torch.isfinite(picture).all())
    assert picture.dtype == torch.float32
    assert set(report.full_steps) == expected(report, forecaster) | forced
    assert report.full_steps == sorted(set(report.full_steps))
    assert report.nfc == len(report.full_steps)
    assert report.steps == STEPS
    if isinstance(schedule, Always):
        assert torch.equal(picture, full_picture())
    else:
        assert report.nfc < STEPS
        assert relative_error(picture, full_picture()) > 1e-4


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in SCHEDULES], ids=repr)
def test_first_orders_are_one_and_the_same(schedule: Schedule) -> None:
    """Taylor, Newton and Linear of weight 1 are the same straight line at order 1."""
    pictures = []
    for forecaster in (Taylor(1), Newton(1), Linear(1.0)):
        model = tiny_dit()
        relcache.enable(model, forecaster=forecaster, schedule=schedule, num_inference_steps=STEPS)
        pictures.append(run_loop(model, steps=STEPS))
    assert relative_error(pictures[1], pictures[0]) < 1e-5
    assert relative_error(pictures[2], pictures[0]) < 1e-5


def test_every_forecaster_is_in_the_table() -> None:
    assert {type(forecaster) for forecaster in FORECASTERS} == set(relcache.forecasters.FORECASTERS.values())


def test_every_schedule_is_in_the_table() -> None:
    assert {type(schedule) for schedule, _ in SCHEDULES} == set(relcache.schedules.SCHEDULES.values())
