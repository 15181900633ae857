"""Solvers with fewer steps in place of a pipeline's own scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.comparison.contestants import sample
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.rivals.solvers import SOLVERS, Solver
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.pipelines import load_pipeline

SEEDS = [5, 6]
FLOW = ("text", "video")


@pytest.fixture(scope="module", params=list(SMALL))
def sampler(request: pytest.FixtureRequest) -> Any:
    benchmark = SMALL[request.param]
    options = {**benchmark.options, "guidance_scale": benchmark.guidance}
    return Sampler(load_pipeline(benchmark.model), 60, 2, options), benchmark.conditions(SEEDS), request.param


@pytest.fixture(scope="module")
def exact(sampler: Any) -> torch.Tensor:
    pipe, conditions, _ = sampler
    return Sampler(pipe.pipeline, 120, 2, pipe.options).call(SEEDS, conditions)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_more_steps_come_nearer_to_the_exact_solution(solver: Solver, sampler: Any, exact: torch.Tensor) -> None:
    pipe, conditions, task = sampler
    own = pipe.pipeline.scheduler
    if reason := solver.unfit(pipe.pipeline):
        assert solver.only, reason
        assert (solver.only == "flow") != (task in FLOW), reason
        return
    with solver.enabled(pipe.pipeline, {}, 6):
        pipe.call(SEEDS, conditions)
        assert float(pipe.pipeline.scheduler.sigmas[-1] if solver.scheduler else 0) < 0.02, "noise is left at the end"
    near = []
    for calls in (6, 30):
        steps = solver.steps(calls)
        made = sample({"method": solver.name, "steps": steps}, pipe, SEEDS, conditions)
        assert made.report["nfc"] == made.report["steps"] == solver.calls * (steps - 1) + 1
        assert calls - 1 <= made.report["nfc"] <= calls
        assert pipe.pipeline.scheduler is own
        near.append(float(psnr(made.images, exact).mean()))
    assert near[1] > near[0] + 3


def test_fewer_steps_are_the_same_scheduler(sampler: Any) -> None:
    pipe, conditions, _ = sampler
    made = sample({"method": "fewer-steps", "steps": 7}, pipe, SEEDS, conditions)
    plain = Sampler(pipe.pipeline, 7, 2, pipe.options).call(SEEDS, conditions)
    assert made.images.equal(plain)


@pytest.mark.parametrize("name", ["unipc", "heun"])
def test_solvers_are_of_their_order(name: str) -> None:
    """On dx/dσ = 0.7 x half the step divides the error by about 4; by 2 for Euler."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    errors = []
    for steps in (40, 80):
        own = FlowMatchEulerDiscreteScheduler()
        scheduler = next(solver for solver in SOLVERS if solver.name == name).made(own)
        scheduler.set_timesteps(steps)
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        first = float(scheduler.sigmas[0])
        for timestep in scheduler.timesteps:
            v = x.double() * 0.7  # dx/dsigma = 0.7 x
            x = scheduler.step(v, timestep, x).prev_sample.double()
        errors.append(abs(float(x) - 2.718281828459045 ** (-0.7 * first)))
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("solver", [each for each in SOLVERS if each.scheduler and each.only != "flow"], ids=str)
def test_noise_models_begin_with_noise(solver: Solver) -> None:
    """DDIM's spacing "leading", once it is in a pipeline's file, would let a few steps begin with too little noise."""
    own = DDIMScheduler(timestep_spacing="leading")
    scheduler = solver.made(own)
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999
    assert scheduler.init_noise_sigma == 1.0, "pipelines multiply the first noise by it"


def test_a_solver_is_seen_between_the_numbers_of_the_caches() -> None:
    unipc = next(solver for solver in SOLVERS if solver.name == "unipc")
    assert unipc.targets((25, 20, 14, 10), 50) == [25, 20, 14, 10, 31, 22, 17, 12]
    assert unipc.targets((8, 7), 8) == [8, 7]
    assert unipc.targets((14,), 15) == [14]
