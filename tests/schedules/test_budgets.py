"""Budgets: each request has exactly the number of full steps that was asked for."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import requesting
import torch
from requesting import options_of
from small_pipelines import flux
from test_granularity import SPEC, Tower
from tiny import run_loop, tiny_dit, tiny_pipeline

import relcache
from relcache import FORA, RCS, RFC, RFE, ErrorBudget, Growing, Newton, Relational, Replay, Reuse, Taylor, TaylorSeer
from relcache.schedules.base import Setting
from relcache.schedules.growing import default_budget, growing_steps
from relcache.session.finer import finer_sigmas, finer_timesteps


def run(pipe: Any, steps: int) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(
        pipe(class_labels=[3], num_inference_steps=steps, generator=generator, output_type="np").images
    )


@pytest.mark.parametrize("growth", [0.7, 0.9, 1.0, 1.3, 1.7, 3.0])
@pytest.mark.parametrize("history", [1, 2])
def test_steps_that_grow(growth: float, history: int) -> None:
    """As many as asked for, from the first, within the request; growing gaps neither shrink nor jump."""
    for total in (*range(1, 41), 50, 100, 1000):
        for full in range(1, min(total, 30) + 1):
            steps = growing_steps(total, full, growth, history)
            assert len(steps) == min(total, max(full, history))
            assert list(steps) == sorted(set(steps))
            assert steps[: min(history, total)] == tuple(range(min(history, total)))
            assert steps[-1] < total
            gaps = [later - earlier for earlier, later in pairwise(steps[history - 1 :])]
            if growth >= 1:
                assert gaps == sorted(gaps)
            if 1 < growth < 2 and full > 6:
                assert all(later <= 2 * earlier for earlier, later in pairwise(gaps))


def test_where_the_steps_lie() -> None:
    """Dense early in flow matching, about even under noise prediction."""
    assert growing_steps(50, 14, 1.7) == (0, 1, 2, 4, 6, 9, 13, 17, 21, 26, 31, 36, 42, 48)
    assert growing_steps(50, 8, 0.9) == (0, 8, 15, 21, 28, 34, 40, 46)
    flow = Growing(8).start(Setting(50, "velocity")).planned
    noise = Growing(8).start(Setting(50, "noise")).planned
    assert flow[1] < noise[1]
    assert Growing(14).start(Setting(200, "velocity")).planned == growing_steps(200, 14, 2.0)
    assert Growing(8, growth=1.2).start(Setting(50, "noise")).planned == growing_steps(50, 8, 1.2)


def test_default_budget() -> None:
    assert [default_budget(steps) for steps in (50, 28, 20, 10, 6, 1)] == [14, 9, 7, 5, 6, 1]


@pytest.mark.parametrize("steps", [7, 10, 20, 28, 50])
def test_the_default_meets_its_budget(steps: int) -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe) as handle:
        run(pipe, steps)
        report = handle.report()
    assert report.nfc == default_budget(steps)
    assert report.method == "auto"
    assert report.forecaster == "Taylor(order=2, reuse_first=True, damping=0.5)"
    assert report.units == 1
    assert report.notes == []
    assert len(report.corrections) == sum(later - earlier > 1 for earlier, later in pairwise(report.full_steps))


FORECASTERS = [
    Reuse(), Taylor(1), Taylor(2), Taylor(2, reuse_first=True, damping=0.5), Newton(2), Relational(1), Relational(2)
]  # fmt: skip


@pytest.mark.parametrize("forecaster", FORECASTERS, ids=str)
@pytest.mark.parametrize("granularity", ["module", "block", "stack"])
def test_every_forecaster_meets_a_budget(forecaster: Any, granularity: Any) -> None:
    pipe = tiny_pipeline()
    for corrector in ("none", "replay"):
        with relcache.enable(
            pipe, forecaster=forecaster, full_steps=5, granularity=granularity, corrector=corrector
        ) as handle:
            for steps in (5, 6, 12, 25):
                run(pipe, steps)
                assert len(handle.full_steps) == 5


@pytest.mark.parametrize(
    "method",
    [
        RFC(2, threshold=0.2),
        RFC(1, threshold=3.0),
        RCS(1, threshold=1e-6),
        RCS(2, threshold=1e6),
        "rfc:order=2,threshold=0.1",
    ],
    ids=str,
)
@pytest.mark.parametrize("full", [2, 3, 5, 11])
def test_a_threshold_is_steered_to_the_budget(method: Any, full: int) -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, method, full_steps=full) as handle:
        for steps in (12, 25):
            run(pipe, steps)
            assert len(handle.full_steps) == full


def test_steering() -> None:
    """The next threshold is to the last as the next gap of the course, for what is left of the budget, to the last."""
    budget = ErrorBudget(1.0, full_steps=6)
    state = budget.start(Setting(21))
    assert state.course == (0, 1, 5, 9, 14, 19)
    for step in range(2):
        state = budget.advance(state, step, None, full=True)
    for step in range(2, 8):
        state = budget.advance(state, step, 0.1, full=False)
    state = budget.advance(state, 8, 0.9, full=True)  # a gap of 7, at 3/4 of the course's from 5 to 9
    assert (state.left, state.full_left, state.error, state.steps) == (12, 3, 0.0, 0)
    assert state.next_gap(8) == pytest.approx(4 * (11 / 14) * (3 / 3))
    assert state.threshold == pytest.approx(state.next_gap(8) / 7)
    beyond = state._replace(course=(0, 1))
    assert beyond.next_gap(8) == pytest.approx(12 / 3)


def test_a_forced_full_step_is_made_up_for() -> None:
    """Where features were dropped a step is full, and the next planned one is cached in its place."""
    model = tiny_dit()
    with relcache.enable(model, full_steps=5, num_inference_steps=16) as handle:
        for _ in range(2):
            freed: list[bool] = []

            def free(*_: Any, freed: list[bool] = freed) -> None:
                if len(handle.full_steps) == 3 and not freed:
                    freed.append(True)
                    handle.free()

            hook = model.register_forward_pre_hook(free, prepend=True)
            run_loop(model, steps=16)
            hook.remove()
            assert len(handle.full_steps) == 5
    assert handle.full_steps != list(growing_steps(16, 5, 1.0))
    growing = Growing(4, growth=1.0)
    state = growing.start(Setting(16))
    assert state.planned == (0, 4, 8, 13)
    for step in range(3):
        state = growing.advance(state, step, None, full=step in (0, 2))
    assert state.planned == (8, 13)


def test_a_budget_that_leaves_nothing_to_skip() -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, full_steps=14) as handle:
        run(pipe, 12)
        report = handle.report()
    assert report.nfc == report.steps == 12
    assert any("nothing is skipped: the request has 12 steps, and full_steps=14" in note for note in report.notes)


def test_a_budget_needs_the_number_of_steps() -> None:
    model = tiny_dit()
    relcache.enable(model)
    with pytest.raises(ValueError, match=r"the default budget needs the number of steps.*scheduler="):
        run_loop(model, steps=12)


def test_a_loop_that_goes_on_beyond_its_number_of_steps() -> None:
    """What was not told of is computed."""
    model = tiny_dit()
    handle = relcache.enable(model, full_steps=4, num_inference_steps=10)
    with pytest.warns(UserWarning, match="has more steps than num_inference_steps"):
        run_loop(model, steps=14)
    assert handle.full_steps[-4:] == [10, 11, 12, 13]


def test_a_speed_is_turned_into_full_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a cached step takes a tenth of a full one: 50 steps in the time of 25 are 22 full ones."""
    pipe = tiny_pipeline()
    seconds = [0.0]

    def tick(full: bool) -> None:
        seconds[0] += 1.0 if full else 0.1

    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    with relcache.enable(pipe, relcache.auto(corrector=None), speedup=2.0) as handle:
        own = pipe.scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            tick(handle._session.requests.last.full is True)
            return own(*args, **kwargs)

        pipe.scheduler.step = step
        for _ in range(2):
            run(pipe, 50)
            assert len(handle.full_steps) == 22
        run(pipe, 20)
        assert len(handle.full_steps) == 8
    assert Growing(speedup=2.0).start(Setting(50, cost=0.7)).planned == (0,)
    assert "cannot be reached: a cached step takes 70%" in str(
        Growing(speedup=2.0).short_of_speed(Setting(50, cost=0.7))
    )


def test_texts_and_budgets() -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, "taylorseer:order=1,interval=4,granularity=stack,corrector=replay") as handle:
        run(pipe, 12)
        assert len(handle.report().corrections) == 2
    assert relcache.method_from_text("auto:full_steps=5,corrector=none").corrector is None
    assert relcache.method_from_text('rfc:corrector={"degree":2,"theta":0.5}').corrector == Replay(2, 0.5)
    with pytest.raises(ValueError, match=r"unknown option of the corrector 'theeta'.*theta"):
        relcache.method_from_text('rfc:corrector={"theeta":0.5}')
    with pytest.raises(ValueError, match='the corrector is "replay", "none"'):
        relcache.method_from_text("rfc:corrector=repaly")


def test_methods_of_papers_are_not_corrected() -> None:
    """They are baselines: what their authors published, and nothing of ours."""
    for method in (
        FORA(4),
        TaylorSeer(1, interval=4),
        TaylorSeer(2, interval=4),
        RFC(2, threshold=0.1),
        RFE(2, interval=4),
        RCS(2, threshold=0.1),
    ):
        assert method.corrector is None
        assert method.granularity == "module"
        assert method.schedule.needs_total_steps is None
        assert method.forecaster.full_steps_needed == (1 if isinstance(method.forecaster, Reuse) else 2)


def test_a_model_whose_blocks_cannot_be_taken_whole() -> None:
    """The default then caches modules, and says so."""
    with pytest.warns(UserWarning, match="modules are cached one by one, as"):
        handle = relcache.enable(Tower(), spec=replace(SPEC, inputs=None), num_inference_steps=8)
    assert len(handle.units) > 1


def test_finer_steps_at_the_same_number_of_full_ones() -> None:
    """The very picture of a request for so many steps; other pipelines, and the scheduler afterwards, are as before."""
    pipe = tiny_pipeline()
    other = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
    with relcache.enable(pipe, full_steps=5):
        expected = run(pipe, 40)
    with relcache.enable(pipe, full_steps=5, finer=4) as handle:
        assert torch.equal(run(pipe, 10), expected)
        assert (handle.report().steps, handle.report().nfc) == (40, 5)
    with relcache.enable(pipe, finer=4) as handle:
        run(pipe, 10)
        assert (handle.report().steps, handle.report().nfc) == (40, default_budget(10))
        run(other, 10)
        assert (handle.report().steps, handle.report().nfc) == (10, default_budget(10))
    assert "set_timesteps" not in vars(pipe.scheduler)


def test_finer_sigmas() -> None:
    """FLUX asks for sigmas by itself: those between them are the ones that it would ask for."""
    for built in (flux(), flux(diffusers.FluxImg2ImgPipeline)):
        made = []
        options = options_of(built[0])
        for steps, finer in ((40, 1), (10, 4)):
            with relcache.enable(built[0], full_steps=6, finer=finer) as handle:
                made.append(requesting.run(*built, steps=steps, **options))
                assert handle.report().nfc == 6
        torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    assert finer_sigmas([1.0, 0.5], 2) == [1.0, 0.75, 0.5, 0.25]
    assert finer_sigmas(torch.tensor([1.0, 0.5]), 2).dtype == torch.float32


def test_finer_steps_that_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="finer is a whole number from 1 to 16, got 0"):
        relcache.enable(tiny_pipeline(), finer=0)
    model = tiny_dit()
    with pytest.raises(ValueError, match="finer=2 needs a scheduler"):
        relcache.enable(model, finer=2)
    assert "forward" not in model.__dict__
    with pytest.raises(ValueError, match="does not go with timesteps of your own"):
        finer_timesteps(2)(diffusers.EulerDiscreteScheduler().set_timesteps, timesteps=[999, 500, 1])
