"""Guidance branches: one step however many calls, and never a feature from one in another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from tiny import DiTWithContext, call_along, run_guided, run_pipeline, timesteps_for, tiny_dit, trajectory
from torch import Tensor

import relcache
from relcache import FORA, RFC, Interval, Method, Newton, Plan, Relational, TaylorSeer

STEPS = 12
METHODS = [FORA(4), TaylorSeer(2, interval=4), Method(Relational(2), Interval(3)), RFC(2, threshold=0.6)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


@every_method
@pytest.mark.parametrize("context", [False, True], ids=["conditioning", "cache_context"])
def test_steps_are_counted_once(method: Method, context: bool, model_with_context: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model_with_context, method)
    run_guided(model_with_context, STEPS, context=context)
    report = handle.report()
    assert report.steps == STEPS
    assert len(report.signal) == STEPS
    assert len(report.branches) == 2
    if context:
        assert report.branches == ["cond", "uncond"]


def test_steps_are_counted_once_in_a_joint_batch(pipeline: DiTPipeline) -> None:
    handle = relcache.enable(pipeline, TaylorSeer(1, interval=4))
    run_pipeline(pipeline, [3], STEPS)
    assert handle.report().steps == STEPS
    assert handle.report().full_steps == [0, 1, 5, 9]
    assert len(handle.report().branches) == 1
    assert handle.report().batch == 2


@pytest.mark.parametrize("uncond_steps", [range(4, 9), range(1, 12), [0, 1, 5], [3], [11], []], ids=str)
def test_guidance_interval(uncond_steps: list[int]) -> None:
    """The second branch is called in some steps only: steps and the first branch's outputs do not notice."""
    model = tiny_dit()
    handle = relcache.enable(model, TaylorSeer(2, interval=4))
    guided = call_along(model, trajectory(STEPS), {"cond": range(STEPS), "uncond": uncond_steps})
    assert handle.report().steps == STEPS
    assert handle.report().full_steps == [0, 1, 5, 9]

    alone = tiny_dit()
    relcache.enable(alone, TaylorSeer(2, interval=4))
    expected = call_along(alone, trajectory(STEPS), {"cond": range(STEPS)})
    assert all(torch.equal(a, b) for a, b in zip(guided["cond"], expected["cond"], strict=True))


def test_guidance_interval_in_which_the_first_branch_pauses() -> None:
    """Neither branch is 'the first one': whichever is called opens the step."""
    model = tiny_dit()
    handle = relcache.enable(model, Method(Newton(1), Interval(3)))
    call_along(model, trajectory(STEPS), {"cond": [0, 1, 2, 3, 4, 8, 9, 10, 11], "uncond": range(2, 9)})
    assert handle.report().steps == STEPS
    assert handle.report().full_steps == [0, 1, 4, 7, 10]


def test_a_branch_that_begins_late_is_computed_until_it_has_history() -> None:
    """Its first two calls fall on cached steps; nothing is forecast from one full step, and it is counted."""
    model, plain = tiny_dit(), tiny_dit()
    handle = relcache.enable(model, TaylorSeer(1, interval=8))
    late = call_along(model, trajectory(STEPS), {"cond": range(STEPS), "uncond": range(3, STEPS)})
    expected = call_along(plain, trajectory(STEPS), {"uncond": range(3, STEPS)})
    same = [torch.equal(a, b) for a, b in zip(late["uncond"], expected["uncond"], strict=True)]
    assert same == [True, True, False, False, False, False, True, False, False]  # steps 3, 4 and 9
    assert sum(count for reason, count in handle.report().fallbacks.items() if "without history" in reason) == 2 * 4


@every_method
@pytest.mark.parametrize("context", [False, True], ids=["conditioning", "cache_context"])
def test_branches_are_as_if_each_were_alone(method: Method, context: bool) -> None:
    if method.name == "RFC":
        # Its decisions come from the first branch's input; alone, the second branch would decide for itself.
        method = Method(method.forecaster, Plan([0, 1, 4, 5, 9]))
    together = tiny_dit(kind=DiTWithContext)
    relcache.enable(together, method)
    both = call_along(together, trajectory(STEPS), {"cond": range(STEPS), "uncond": range(STEPS)}, context)
    for branch in ("cond", "uncond"):
        alone = tiny_dit(kind=DiTWithContext)
        relcache.enable(alone, method)
        expected = call_along(alone, trajectory(STEPS), {branch: range(STEPS)}, context)
        assert all(torch.equal(a, b) for a, b in zip(both[branch], expected[branch], strict=True))


@every_method
@pytest.mark.parametrize("poisoned", ["cond", "uncond"])
def test_a_poisoned_branch_leaves_the_other_alone(method: Method, poisoned: str) -> None:
    """Whatever the cache of one branch holds, the other's outputs are the same, and the poison does show."""
    if method.name == "RFC":
        method = Method(method.forecaster, Plan([0, 1, 4, 9]))
    order = ["cond", "uncond"]
    outputs = []
    for poison in (False, True):
        model = tiny_dit()
        handle = relcache.enable(model, method)

        def spoil(step: int, branch: str, handle: relcache.Handle = handle, poison: bool = poison) -> None:
            if not poison or step != 5 or branch != "uncond":
                return
            session = handle._session
            branch = list(session.cache.request.branches.values())[order.index(poisoned)]
            for tensor in branch.tensors():
                if tensor.is_floating_point():
                    tensor.data.fill_(1e3)  # unseen by the check for changes in place

        outputs.append(call_along(model, trajectory(STEPS), dict.fromkeys(order, range(STEPS)), after=spoil))
    clean, spoilt = outputs
    other = order[1 - order.index(poisoned)]
    assert all(torch.equal(a, b) for a, b in zip(clean[other], spoilt[other], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(clean[poisoned], spoilt[poisoned], strict=True))


@pytest.mark.parametrize(
    "timestep",
    [lambda step: torch.tensor([999 - step * 50] * 2), lambda step: timesteps_for(STEPS)[step].expand(2)],
    ids=["new timestep", "entry of a new table"],
)
def test_conditioning_is_told_apart_by_content_where_the_tensor_is_new(timestep: Callable[[int], Tensor]) -> None:
    """A loop that builds its tensors anew in every call has two branches all the same."""
    model = tiny_dit()
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    for _ in range(2):
        with torch.no_grad():
            for step, sample in enumerate(trajectory(STEPS)):
                for label in (3, 1000):
                    model(sample, timestep=timestep(step), class_labels=torch.tensor([label, label]))
        assert handle.report().steps == STEPS
        assert len(handle.report().branches) == 2
        assert handle.report().full_steps == [0, 1, 5, 9]


def test_conditioning_in_one_buffer_never_mixes_branches() -> None:
    """A label tensor that is overwritten between the calls holds no branch: each call is computed in full."""
    model, plain = tiny_dit(), tiny_dit()
    relcache.enable(model, TaylorSeer(1, interval=4))

    def run(transformer: DiTTransformer2DModel) -> list[Tensor]:
        labels, timesteps = torch.zeros(2, dtype=torch.int64), timesteps_for(STEPS)
        with torch.no_grad():
            return [
                transformer(sample, timestep=timesteps[step].expand(2), class_labels=labels.fill_(label)).sample
                for step, sample in enumerate(trajectory(STEPS))
                for label in (3, 1000)
            ]

    with pytest.warns(UserWarning, match="conditioning changed more than"):
        outputs = run(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs, run(plain), strict=True))


def test_conditioning_that_changes_at_every_step_is_computed_in_full() -> None:
    """Each change looks like a new branch; it must not be forecast from another's features."""
    model, plain = tiny_dit(), tiny_dit()
    relcache.enable(model, TaylorSeer(1, interval=4))

    def run(transformer: DiTTransformer2DModel) -> list[torch.Tensor]:
        with torch.no_grad():
            return [
                transformer(
                    sample, timestep=torch.tensor([999 - step * 50] * 2), class_labels=torch.tensor([step, step])
                ).sample
                for step, sample in enumerate(trajectory(STEPS))
            ]

    with pytest.warns(UserWarning, match="conditioning changed more than"):
        outputs = run(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs, run(plain), strict=True))
