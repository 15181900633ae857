"""Methods of the literature by their equations: each against an oracle, and all on the shipped pipelines."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import hermite
from torch import Tensor

from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import calibration_seeds, smallest_threshold
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.forecasters import Taylor
from relcache.forecasters.base import Forecaster
from relcache.schedules.base import Setting
from relcache_rivals.equations import EQUATIONS, Equation
from relcache_rivals.equations.accumulated import AccumulatedChange, relative_change
from relcache_rivals.equations.dpcache import best_plans, path_costs
from relcache_rivals.equations.hicache import ScaledHermite, scaled_hermite
from relcache_rivals.equations.meancache import MeanVelocity, edge_costs, shortest_paths, step_lengths
from relcache_rivals.equations.outputs import OfOutput
from relcache_rivals.equations.spectrum import ChebyshevRidge, window_plan, windows

STEPS = 12
BY_NAME = {equation.name: equation for equation in EQUATIONS}


def forecast_of(forecaster: Forecaster, values: dict[int, Tensor], step: int, input: Tensor | None = None) -> Tensor:
    """The forecast at `step` after full steps with `values`, each (batch, …)."""
    state, done = None, []
    for full in sorted(values):
        done.insert(0, full)
        kept = tuple(done[: forecaster.expansion.order + 1])
        state = forecaster.update(state, kept, torch.zeros_like(values[full]), values[full])
    present = torch.zeros_like(values[done[0]]) if input is None else input
    return forecaster.forecast(state, forecaster.coefficients(kept, step), present).output


# Spectrum


@pytest.mark.parametrize("degree", [1, 3, 4])
def test_chebyshev_without_a_ridge_is_exact_on_polynomials(degree: int) -> None:
    polynomial = np.random.default_rng(0).normal(size=degree + 1)

    def at(step: int) -> Tensor:
        return torch.full((1, 2), float(np.polyval(polynomial, step / 50)), dtype=torch.float64)

    forecaster = ChebyshevRidge(50, degree, ridge=1e-12)
    found = forecast_of(forecaster, {step: at(step) for step in (0, 1, 2, 4, 6, 9, 15)}, 22)
    assert torch.allclose(found, at(22), atol=1e-5)


def test_the_ridge_is_the_minimum_of_its_objective() -> None:
    steps, outputs = [9, 5, 2, 1, 0], np.random.default_rng(1).normal(size=5)
    design = np.polynomial.chebyshev.chebvander(2 * np.array(steps) / 20 - 1, 4)
    root = np.sqrt(0.1) * np.eye(5)  # ridge regression is least squares with further rows
    best, *_ = np.linalg.lstsq(np.vstack([design, root]), np.concatenate([outputs, np.zeros(5)]), rcond=None)
    expected = float(np.polynomial.chebyshev.chebval(2 * 12 / 20 - 1, best))
    assert np.dot(ChebyshevRidge(20).coefficients(steps, 12), outputs) == pytest.approx(expected)


def test_spectrum_mixes_with_the_line_through_the_last_two_full_steps() -> None:
    line = np.zeros(4)
    line[:2] = 1 + 3 / 2, -3 / 2
    ridge = np.array(ChebyshevRidge(20).coefficients([6, 4, 1, 0], 9))
    mixed = ChebyshevRidge(20, weight=0.25).coefficients([6, 4, 1, 0], 9)
    assert mixed == pytest.approx(0.25 * ridge + 0.75 * line)


def test_spectrums_windows_give_the_published_numbers_of_full_steps() -> None:
    assert len(windows(50, 0.75)) == 14
    assert len(windows(50, 3.0)) == 10
    assert window_plan(50, 14) == windows(50, 0.75)
    assert windows(12, 1.0, warmup=3) == (0, 1, 2, 4, 7, 11)


@pytest.mark.parametrize("total", [12, 20, 50])
def test_spectrums_plan_has_any_number_of_full_steps(total: int) -> None:
    for wanted in range(2, total + 1):
        plan = window_plan(total, wanted)
        assert len(plan) == wanted
        assert plan[-1] < total


# HiCache


@pytest.mark.parametrize("x", [-3.0, 0.5, 4.0])
def test_scaled_hermite_polynomials(x: float) -> None:
    sigma = 0.5
    assert scaled_hermite(1, x, sigma) == pytest.approx(sigma * 2 * (sigma * x))
    assert scaled_hermite(2, x, sigma) == pytest.approx(sigma**2 * (4 * (sigma * x) ** 2 - 2))
    for order in range(5):
        expected = sigma**order * hermite.Hermite.basis(order)(sigma * x)
        assert scaled_hermite(order, x, sigma) == pytest.approx(expected)


def test_hicache_by_hand() -> None:
    values = {0: 1.0, 2: 2.0, 6: 5.0}  # slopes 1/2 and 3/4, and the difference of slopes over the last gap 1/16
    tensors = {step: torch.tensor([[value]]) for step, value in values.items()}
    expected = 5 + (0.5 * 3) * 0.75 + 0.25 * (3**2 - 2) / 2 * (1 / 16)
    assert forecast_of(ScaledHermite(2, 0.5), tensors, 9).item() == pytest.approx(expected)


# DPCache


def cost_of(plan: tuple[int, ...], costs: np.ndarray, first: int) -> float:
    nodes = [*plan, len(costs)][first - 2 :]
    return float(sum(costs[i, j, k] for i, j, k in zip(nodes, nodes[1:], nodes[2:], strict=False)))


@pytest.mark.parametrize("seed", range(4))
def test_the_plans_are_the_cheapest_of_all(seed: int) -> None:
    total, first = 9, 3
    costs = np.random.default_rng(seed).random((total, total, total + 1))
    for i, j, k in np.ndindex(costs.shape):
        costs[i, j, k] = costs[i, j, k] if i < j < k else np.inf
    for plan in best_plans(costs, first):
        rest = len(plan) - first
        everyone = [(*range(first), *later) for later in combinations(range(first, total), rest)]
        assert cost_of(tuple(plan), costs, first) == pytest.approx(min(cost_of(one, costs, first) for one in everyone))
    assert [len(plan) for plan in best_plans(costs, first)] == list(range(first, total + 1))


def test_the_costs_are_forecast_errors_in_sum() -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 5)
    costs = path_costs(values, Taylor(2))
    errors = [
        (values[step] - forecast_of(Taylor(2), {at: values[at][None] for at in (2, 4, 5)}, step)[0]).abs().mean()
        for step in (6, 7)
    ]
    assert costs[4, 5, 6] == pytest.approx(errors[0].item(), rel=1e-5)
    assert costs[4, 5, 7] == pytest.approx(sum(errors).item(), rel=1e-5)
    assert costs[4, 5, 8] == costs[4, 5, 7]
    assert np.isinf(costs[5, 4, 7])


# MeanCache


def test_meancache_by_hand() -> None:
    lengths = (0.1, 0.3, 0.2, 0.4)
    values = {0: torch.tensor([[1.0]]), 1: torch.tensor([[2.0]])}
    average = (0.1 * 1 + 0.3 * 2) / 0.4  # over steps 0 and 1
    second = 2 + (average - 1) / 0.4 * 0.2
    average = (0.3 * 2 + 0.2 * second) / 0.5  # over steps 1 and 2, the second of them skipped
    third = second + (average - 2) / 0.5 * 0.4
    forecaster = MeanVelocity(lengths, (2, 2, 2, 2))
    assert forecast_of(forecaster, values, 2).item() == pytest.approx(second)
    assert forecast_of(forecaster, values, 3).item() == pytest.approx(third)
    assert forecast_of(MeanVelocity(lengths, (1, 1, 1, 1)), values, 3).item() == 2.0


def test_edge_costs_by_hand() -> None:
    velocities, lengths = torch.tensor([[1.0], [2.0], [4.0], [4.0], [9.0]]), [0.1, 0.3, 0.2, 0.4, 0.1]
    costs, spans = edge_costs(velocities, lengths)
    by_span = {}
    for span in (1, 2, 3):
        forecaster = MeanVelocity(tuple(lengths), (span,) * 5)
        known = {0: velocities[0][None], 1: velocities[1][None]}
        used = [velocities[1].item(), *(forecast_of(forecaster, known, step).item() for step in (2, 3))]
        wrong = np.array(used) - velocities[1:4, 0].numpy()
        by_span[span] = abs(float(np.dot(wrong, lengths[1:4]))) / sum(lengths[1:4])
    assert costs[1, 4] == pytest.approx(min(by_span.values()), rel=1e-5)
    assert spans[1, 4] == min(by_span, key=lambda span: by_span[span])
    assert [costs[step, step + 1] for step in range(4)] == [0.0] * 4


def test_shortest_paths_are_the_cheapest_of_all() -> None:
    costs = np.triu(np.random.default_rng(0).random((9, 9)), 1)
    costs[costs == 0] = np.inf
    for path in shortest_paths(costs):
        everyone = [(0, *middle, 8) for middle in combinations(range(1, 8), len(path) - 2)]
        cheapest = min(sum(costs[edge] for edge in pairwise(one)) for one in everyone)
        assert sum(costs[edge] for edge in pairwise(path)) == pytest.approx(cheapest)


# TeaCache


def test_teacache_decides_like_a_naive_loop() -> None:
    torch.manual_seed(0)
    steps, polynomial, threshold = 40, (3.0, -1.0, 0.5, 2.0, 0.01), 1.5
    inputs = torch.randn(steps, 2, 3, 4).cumsum(0)
    expected, total = [], 0.0
    for step in range(steps):
        if step in (0, steps - 1):
            full = True
        else:
            before, now = inputs[step - 1], inputs[step]
            total += np.polyval(polynomial, float((now - before).abs().mean() / before.abs().mean()))
            full = total >= threshold
        if full:
            expected.append(step)
            total = 0.0
    schedule, found = AccumulatedChange(threshold, polynomial), []
    state = schedule.start(Setting(steps))
    for step in range(steps):
        error = None
        if schedule.wants_signal(step):
            schedule.meter.see(inputs[step])
            error = 1.0
        full = schedule.wants_full(state, step, error)
        state = schedule.advance(state, step, error, full)
        if error is None:
            schedule.meter.see(inputs[step])
            schedule.meter.see(inputs[step] + 9)  # another branch
        if full:
            found.append(step)
    assert found == expected
    assert 5 < len(found) < steps
    assert schedule.meter.changes[0] == pytest.approx(relative_change(inputs[0], inputs[1]))


# All


def test_an_output_is_forecast_as_a_change_beside_the_present_input() -> None:
    values = {0: torch.tensor([[1.0]]), 1: torch.tensor([[2.0]])}
    assert forecast_of(OfOutput(Taylor(1)), values, 3, torch.tensor([[10.0]])).item() == 2 + 2 - 10


def test_each_is_a_rival() -> None:
    assert all(all_rivals()[equation.name] is equation for equation in EQUATIONS)
    assert {equation.group for equation in EQUATIONS} == {"equations"}
    assert all(equation.source.startswith("arXiv ") for equation in EQUATIONS)


class Bench:
    """A shipped pipeline with its sampler, calibrations and full compute."""

    def __init__(self, task: str):
        small = SMALL[task]
        self.pipeline: Any = load_pipeline(small.model)
        self.pipeline.set_progress_bar_config(disable=True)
        options = {**small.options, "guidance_scale": small.guidance}
        self.sampler = Sampler(self.pipeline, STEPS, 2, options)
        self.seeds, self.known = [3], calibration_seeds(2)
        self.conditions, self.known_conditions = small.conditions(self.seeds), small.conditions(self.known)
        self.full = self.sample()

    def sample(self) -> Tensor:
        return self.sampler.call(self.seeds, self.conditions)

    def calibrated(self, equation: Equation) -> dict[str, Any]:
        return equation.calibrate(self.sampler, self.known, self.known_conditions)

    def run(self, equation: Equation, options: dict[str, Any]) -> tuple[Tensor, list[int]]:
        with equation.enabled(self.pipeline, options, STEPS) as handle:
            return self.sample(), handle.full_steps

    def with_budget(self, equation: Equation, options: dict[str, Any], full_steps: int) -> dict[str, Any]:
        if equation.budget == "full_steps":
            return {**options, "full_steps": full_steps}
        threshold = smallest_threshold(
            lambda threshold: len(self.run(equation, {**options, "threshold": threshold})[1]),
            full_steps, STEPS, equation.start, equation.warmup, most=20,
        )  # fmt: skip
        return {**options, "threshold": threshold}


@pytest.fixture(scope="module", params=["class", "text", "video"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.mark.parametrize("name", BY_NAME)
def test_on_a_shipped_pipeline(bench: Bench, name: str) -> None:
    equation = BY_NAME[name]
    options = bench.calibrated(equation)
    assert json.loads(json.dumps(options)) == options
    assert bench.calibrated(equation) == options
    near = []
    for full_steps in (7, 5) if equation.budget == "full_steps" else (5,):
        images, full = bench.run(equation, bench.with_budget(equation, options, full_steps))
        assert len(full) == full_steps
        near.append(float(psnr(images, bench.full).mean()))
    assert max(near) < 90, "some steps are cached"
    assert min(near) > 12, "the pictures are those of full compute"
    assert near[0] > near[-1] - 1
    assert torch.equal(bench.sample(), bench.full)


@pytest.mark.parametrize("name", [name for name in BY_NAME if BY_NAME[name].budget == "full_steps"])
def test_with_all_steps_full_nothing_changes(bench: Bench, name: str) -> None:
    images, full = bench.run(BY_NAME[name], {"full_steps": STEPS})
    assert full == list(range(STEPS))
    assert torch.equal(images, bench.full)


@pytest.mark.parametrize("name", ["spectrum", "teacache"])
def test_on_a_bare_transformer(bench: Bench, name: str) -> None:
    equation = BY_NAME[name]
    options = {"polynomial": [1.0, 0.0], "full_steps": 5, "threshold": 0.5}
    expected, full = bench.run(equation, options)
    with equation.enabled(bench.pipeline.transformer, options, STEPS) as handle:
        assert torch.equal(bench.sample(), expected)
        assert handle.full_steps == full
    assert torch.equal(bench.sample(), bench.full)


def test_without_calibration_an_error_says_so() -> None:
    with pytest.raises(ValueError, match="call calibrate first"):
        BY_NAME["dpcache"].method({"full_steps": 5}, STEPS)
    with pytest.raises(ValueError, match="call calibrate first"):
        BY_NAME["dpcache"].method({"full_steps": 3, "plans": [[0, 1, 2], [0, 1, 2, 3]]}, STEPS)
    with pytest.raises(ValueError, match="the polynomial that calibrate returns"):
        BY_NAME["teacache"].method({"threshold": 0.1}, STEPS)


def test_lengths_of_steps() -> None:
    class FlowMatchScheduler:
        sigmas = torch.tensor([1.0, 0.75, 0.25, 0.0])

    class OtherScheduler(FlowMatchScheduler):
        pass

    OtherScheduler.__name__ = "DDIMScheduler"
    assert step_lengths(FlowMatchScheduler(), 3) == [0.25, 0.5, 0.25]
    assert step_lengths(OtherScheduler(), 3) == [1.0] * 3
