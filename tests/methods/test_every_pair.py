"""One table: every forecaster with every schedule."""

from __future__ import annotations

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

SCHEDULES = [
    Always(),
    Interval(3),
    Interval(4, warmup=1),
    Interval(4, phase=3),
    Plan([0, 5, 6]),
    ErrorBudget(2.0),
    ErrorBudget(2.0, warmup=1, longest_gap=4),
    ErrorBudget(2.0, norm="tensor", full_last=2),
]


@cache
def full_picture() -> Tensor:
    return run_loop(tiny_dit(), steps=STEPS)


def asked_for(schedule: Schedule, report: Report) -> set[int]:
    """Full steps that the schedule's definition asks for, from the errors in the report where it goes by them."""
    if isinstance(schedule, Always):
        return set(range(STEPS))
    if isinstance(schedule, Plan):
        return set(schedule.full_steps)
    asked = set(range(schedule.warmup))
    if isinstance(schedule, Interval):
        first = schedule.warmup - 1 + schedule.interval if schedule.phase is None else schedule.phase
        return asked | set(range(first, STEPS, schedule.interval))
    asked |= set(range(STEPS - schedule.full_last, STEPS))
    spent, gap = 0.0, 0
    for step in range(schedule.warmup, STEPS):
        spent, gap = spent + (report.signal[step] or 0.0), gap + 1
        if spent > schedule.threshold or gap == schedule.longest_gap:
            asked.add(step)
        if step in report.full_steps:
            spent, gap = 0.0, 0
    return asked


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("forecaster", FORECASTERS, ids=repr)
def test_every_forecaster_with_every_schedule(forecaster: Forecaster, schedule: Schedule) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, forecaster=forecaster, schedule=schedule, num_inference_steps=STEPS)
    picture = run_loop(model, steps=STEPS)
    report = handle.report()

    forced = {1} if forecaster.expansion.order > 0 else set()  # a difference needs two full steps
    assert bool(torch.isfinite(picture).all())
    assert picture.dtype == torch.float32
    assert set(report.full_steps) == asked_for(schedule, report) | forced
    assert report.full_steps == sorted(set(report.full_steps))
    assert report.nfc == len(report.full_steps)
    assert report.steps == STEPS
    if isinstance(schedule, Always):
        assert torch.equal(picture, full_picture())
    else:
        assert report.nfc < STEPS
        assert relative_error(picture, full_picture()) > 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
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
