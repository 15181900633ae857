"""The library beside an independent implementation of the equations: same picture, same full steps, same errors."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
import torch
from oracle import Oracle, Recipe
from tiny import (
    NULL_CLASS,
    ddim,
    noise_for,
    relative_error,
    run_guided,
    run_loop,
    run_pipeline,
    tiny_dit,
    tiny_pipeline,
)
from torch import Tensor

import relcache
from relcache import FORA, RCS, RFC, RFE, ErrorBudget, Interval, Method, Newton, Relational, Reuse, TaylorSeer

STEPS = 16
TOLERANCE = 1e-5  # relative, in float32
LABELS = {"cond": torch.tensor([3, 5]), "uncond": torch.tensor([NULL_CLASS, NULL_CLASS])}

INTERVALS = [
    (Recipe("reuse", 0, interval=4), FORA(4)),
    (Recipe("reuse", 0, interval=3, warmup=1), FORA(3, warmup=1)),
    *[(Recipe("taylor", m, interval=4), TaylorSeer(m, interval=4)) for m in (1, 2)],
    (Recipe("taylor", 3, interval=3, warmup=3), TaylorSeer(3, interval=3, warmup=3)),
    *[(Recipe("newton", m, interval=4), Method(Newton(m), Interval(4))) for m in (1, 2)],
    *[
        (
            Recipe("relational", m, direction, norm, interval=4),
            RFE(m, interval=4, warmup=2, direction=direction, norm=norm),
        )
        for m in (1, 2)
        for direction in ("taylor", "newton")
        for norm in ("sample", "tensor")
    ],
]

NORMS_AND_THRESHOLDS = [("sample", 0.3), ("sample", 0.4), ("sample", 0.8), ("tensor", 0.4), ("tensor", 0.8)]
BUDGETS = [
    *[
        (Recipe("relational", m, direction, norm, threshold=tau), RFC(m, threshold=tau, direction=direction, norm=norm))
        for m in (1, 2)
        for direction in ("taylor", "newton")
        for norm, tau in NORMS_AND_THRESHOLDS
    ],
    *[
        (Recipe("taylor", m, norm=norm, threshold=tau), RCS(m, threshold=tau, norm=norm))
        for m in (1, 2)
        for norm, tau in NORMS_AND_THRESHOLDS
    ],
    (Recipe("newton", 2, threshold=0.4), Method(Newton(2), ErrorBudget(0.4))),
    (Recipe("reuse", 0, threshold=0.8), Method(Reuse(), ErrorBudget(0.8))),
    (Recipe("relational", 2, threshold=0.4, warmup=1), RFC(2, threshold=0.4, warmup=1)),
    (Recipe("relational", 2, threshold=0.0), RFC(2, threshold=0.0)),
]

FEW = INTERVALS + [(recipe, method) for recipe, method in BUDGETS if recipe.threshold == 0.4 and recipe.order == 2]


def over(pairs: list[tuple[Recipe, Method]]) -> pytest.MarkDecorator:
    """One test for each pair of a recipe and the library's method for it."""
    return pytest.mark.parametrize(("recipe", "method"), pairs, ids=[str(recipe) for recipe, _ in pairs])


@cache
def plain_model() -> torch.nn.Module:
    """The model that the oracle computes with; never enabled."""
    return tiny_dit()


@cache
def full_loop() -> Tensor:
    """The bare loop's picture without any caching."""
    return run_loop(plain_model(), LABELS["cond"], STEPS)


def oracle_loop(oracle: Oracle) -> Tensor:
    """The oracle's picture, one call per step."""

    def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
        oracle.begin_step()
        return oracle(sample, timestep.expand(2), LABELS["cond"])

    return ddim(denoise, noise_for([0, 1]), STEPS)


def assert_same(recipe: Recipe, picture: Tensor, expected: Tensor, oracle: Oracle, report: relcache.Report) -> None:
    assert report.full_steps == oracle.full_steps
    assert report.nfc == len(oracle.full_steps)
    assert report.steps == STEPS
    assert relative_error(picture, expected) < TOLERANCE
    for step, error in enumerate(oracle.errors):
        if error is None:
            assert report.signal[step] is None
        else:
            assert report.signal[step] == pytest.approx(error, rel=1e-3, abs=1e-6), f"error of step {step}"


@over(INTERVALS + BUDGETS)
def test_bare_loop(recipe: Recipe, method: Method) -> None:
    oracle = Oracle(plain_model(), recipe, STEPS)
    expected = oracle_loop(oracle)
    model = tiny_dit()
    handle = relcache.enable(model, method)
    picture = run_loop(model, LABELS["cond"], STEPS)

    assert_same(recipe, picture, expected, oracle, handle.report())
    if recipe.threshold != 0:
        assert 2 < len(oracle.full_steps) < STEPS, "a run without cached steps compares nothing"
        assert relative_error(picture, full_loop()) > 100 * TOLERANCE, "caching has to matter for this to be a test"


@over(FEW)
def test_pipeline_with_joint_guidance(recipe: Recipe, method: Method) -> None:
    oracle = Oracle(plain_model(), recipe, STEPS)
    labels = torch.cat([LABELS["cond"], LABELS["uncond"]])

    def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
        oracle.begin_step()
        cond, uncond = oracle(torch.cat([sample, sample]), timestep.expand(4), labels).chunk(2)
        return uncond + 1.5 * (cond - uncond)

    expected = ddim(denoise, noise_for([0, 1]), STEPS)
    pipeline = tiny_pipeline()
    handle = relcache.enable(pipeline, method)
    latents = run_pipeline(pipeline, LABELS["cond"].tolist(), STEPS)

    assert_same(recipe, latents, expected, oracle, handle.report())


@over(FEW)
def test_loop_with_separate_branches(recipe: Recipe, method: Method) -> None:
    oracle = Oracle(plain_model(), recipe, STEPS)

    def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
        oracle.begin_step()
        cond, uncond = (oracle(sample, timestep.expand(2), LABELS[branch], branch) for branch in ("cond", "uncond"))
        return uncond + 1.5 * (cond - uncond)

    expected = ddim(denoise, noise_for([0, 1]), STEPS)
    model = tiny_dit()
    handle = relcache.enable(model, method)
    picture = run_guided(model, STEPS)

    assert_same(recipe, picture, expected, oracle, handle.report())
    assert len(handle.report().branches) == 2


def test_the_comparison_can_tell_recipes_apart() -> None:
    """Different equations give pictures much farther apart than the tolerance; only equal equations pass."""
    recipes = [recipe for recipe, _ in INTERVALS if recipe.interval == 4]
    # At order 1 both forms are the same straight line.
    recipes = [r for r in recipes if r.order != 1 or (r.forecast != "newton" and r.direction != "newton")]
    pictures = [oracle_loop(Oracle(plain_model(), recipe, STEPS)) for recipe in recipes]
    for first, second in combinations(pictures, 2):
        assert relative_error(first, second) > 100 * TOLERANCE


@pytest.mark.parametrize("order", [1, 2])
def test_published_formula_is_the_whole_tensor_norm(order: int) -> None:
    """At batch 1 the two norms are the same formula; in a batch they are not."""
    pictures = {}
    for norm in ("sample", "tensor"):
        model = tiny_dit()
        relcache.enable(model, Method(Relational(order, norm=norm), Interval(4)))
        pictures[norm, 1] = run_loop(model, torch.tensor([3]), STEPS)
        pictures[norm, 2] = run_loop(model, torch.tensor([3, 5]), STEPS)
    assert relative_error(pictures["sample", 1], pictures["tensor", 1]) < 1e-6
    assert relative_error(pictures["sample", 2], pictures["tensor", 2]) > 1e-6


def test_oracle_without_caching_is_the_model() -> None:
    """The oracle's own forward is DiT's: nothing else would make the comparison worth anything."""
    model = plain_model()
    oracle = Oracle(model, Recipe("reuse", interval=1), STEPS)
    sample, timestep, labels = noise_for([0, 1]), torch.tensor([500, 500]), torch.tensor([3, 5])
    oracle.begin_step()
    with torch.no_grad():
        expected = model(sample, timestep=timestep, class_labels=labels).sample
    assert relative_error(oracle(sample, timestep, labels), expected) < 1e-6
