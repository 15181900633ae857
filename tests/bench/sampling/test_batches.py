"""A sample's picture does not depend on the samples that it is generated beside."""

from __future__ import annotations

import pytest
import torch
from tiny import relative_error, run_loop, run_pipeline, tiny_dit, tiny_pipeline

import relcache
from relcache import FORA, RCS, RFC, RFE, ErrorBudget, Interval, Linear, Method, Newton, Plan, Relational, TaylorSeer

STEPS = 13
LABELS = torch.tensor([3, 5, 7, 1, 0, 9, 2, 8])
SEEDS = list(range(8))
ONE = 4  # the sample that is also generated alone

INDEPENDENT = "decisions independent of the batch"
SHARED = "one decision for the whole batch"

FIXED = [
    FORA(4),
    TaylorSeer(1, interval=4),
    TaylorSeer(2, interval=4),
    Method(Linear(0.8), Interval(4)),
    Method(Newton(2), Interval(4)),
    RFE(1, interval=4),
    RFE(2, interval=4),
    RFE(2, interval=4, direction="newton"),
    Method(Relational(2), Plan([0, 1, 3, 6, 10])),
]


@pytest.mark.parametrize("method", FIXED, ids=lambda method: f"{method.forecaster} {method.schedule}")
def test_alone_and_in_a_batch(method: Method) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, method)
    batch = run_loop(model, LABELS, STEPS, SEEDS)
    batch_report = handle.report()
    alone = run_loop(model, LABELS[ONE : ONE + 1], STEPS, SEEDS[ONE : ONE + 1])
    report = handle.report()

    assert relative_error(alone, batch[ONE : ONE + 1]) < 1e-4
    assert report.full_steps == batch_report.full_steps
    assert (report.batch, batch_report.batch) == (1, 8)
    assert report.decision == batch_report.decision == INDEPENDENT


@pytest.mark.parametrize("method", [TaylorSeer(2, interval=4), RFE(2, interval=4)], ids=lambda method: method.name)
def test_alone_and_in_a_batch_of_a_pipeline(method: Method) -> None:
    """Guidance doubles the batch; both halves keep to themselves."""
    pipeline = tiny_pipeline()
    relcache.enable(pipeline, method)
    batch = run_pipeline(pipeline, LABELS.tolist(), STEPS, seeds=SEEDS)
    alone = run_pipeline(pipeline, [int(LABELS[ONE])], STEPS, seeds=[SEEDS[ONE]])
    assert relative_error(alone, batch[ONE : ONE + 1]) < 1e-4


def test_whole_tensor_norm_does_depend_on_the_batch() -> None:
    """Which is why it is not the default."""
    model = tiny_dit()
    relcache.enable(model, RFE(2, interval=4, norm="tensor"))
    batch = run_loop(model, LABELS, STEPS, SEEDS)
    alone = run_loop(model, LABELS[ONE : ONE + 1], STEPS, SEEDS[ONE : ONE + 1])
    assert relative_error(alone, batch[ONE : ONE + 1]) > 1e-3


@pytest.mark.parametrize(
    "method",
    [
        RFC(2, threshold=0.8),
        RFC(1, threshold=0.8, norm="tensor"),
        RCS(1, threshold=0.8),
        Method(Newton(1), ErrorBudget(0.8)),
    ],
    ids=str,
)
def test_one_decision_for_the_batch_is_said(method: Method) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, method)
    run_loop(model, LABELS, STEPS, SEEDS)
    assert handle.report().decision == SHARED
    assert SHARED in str(handle.report())
    run_loop(model, LABELS[:1], STEPS, SEEDS[:1])
    assert handle.report().decision == INDEPENDENT


def test_samples_of_a_batch_share_one_plan() -> None:
    """What the shared decision means: with the plan that the batch took, a sample alone gives the same picture."""
    model = tiny_dit()
    handle = relcache.enable(model, RFC(2, threshold=0.8))
    batch = run_loop(model, LABELS, STEPS, SEEDS)
    plan = Plan(handle.report().full_steps)
    relcache.enable(model, forecaster=Relational(2), schedule=plan)
    alone = run_loop(model, LABELS[ONE : ONE + 1], STEPS, SEEDS[ONE : ONE + 1])
    assert len(plan.full_steps) < STEPS
    assert relative_error(alone, batch[ONE : ONE + 1]) < 1e-4
