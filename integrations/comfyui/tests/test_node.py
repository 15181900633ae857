"""The node on a stand-in that calls as ComfyUI does."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import relcache_comfyui
import torch
from comfy_standin import (
    BaseModel,
    Flux,
    Guider,
    Interrupted,
    Patcher,
    WanModel,
    random_model,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    sampler,
    sigmas_of,
)
from relcache_comfyui.models import spec_of
from torch import Tensor, nn

import relcache

STEPS, FULL = 20, 8
KINDS = pytest.mark.parametrize("kind", [Flux, WanModel])


def patcher_of(model: nn.Module, **options: Any) -> tuple[Patcher, Patcher]:
    """Return the patcher of a model, and the node's."""
    chosen = {"full_steps": FULL, "forecaster": "default", "correction": True, **options}
    plain = Patcher(BaseModel(model))
    node = relcache_comfyui.NODE_CLASS_MAPPINGS["Relcache"]()
    return plain, node.apply(plain, **chosen)[0]


def noise(seed: int = 0, side: int = 4) -> Tensor:
    return torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(seed))


def sampled(patcher: Patcher, seed: int = 0, function: Any = sample_euler, side: int = 4, **options: Any) -> Tensor:
    return Guider(patcher, **options).sample(noise(seed, side), sampler(function), sigmas_of(STEPS))


def summary(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.records[-1].getMessage()


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relcache")


@KINDS
def test_the_budget_is_met_and_the_picture_is_near(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    plain, cached = patcher_of(random_model(kind))
    full = sampled(plain)
    near = sampled(cached)
    assert f"{FULL} of {STEPS} steps full ■" in summary(caplog)
    assert "; corrected at " in summary(caplog)
    assert "not corrected" not in summary(caplog)
    assert 0 < (near - full).norm() / full.norm() < 0.05
    assert torch.equal(sampled(plain), full)  # the model itself is as before


@KINDS
def test_the_picture_is_that_of_a_loop_by_hand(kind: Any) -> None:
    """With relcache's own parts and a scheduler in place of ComfyUI's loop."""
    model = random_model(kind)
    _, cached = patcher_of(model)
    own = sampled(cached)
    guider, sigmas = Guider(Patcher(BaseModel(model))), sigmas_of(STEPS)

    class Scheduler:
        def __init__(self) -> None:
            self.sigmas, self.timesteps, self.step_index = sigmas, sigmas[:-1], 0

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor]:
            self.step_index += 1
            return (sample + model_output * (sigmas[self.step_index] - sigmas[self.step_index - 1]),)

    scheduler, x = Scheduler(), noise()
    relcache.enable(
        model, full_steps=FULL, spec=spec_of(model), granularity="module", scheduler=scheduler, corrector="replay"
    )
    contexts = torch.cat([context.expand(2, -1, -1) for _, context in reversed(guider.conds)])
    with torch.no_grad():
        for time in scheduler.timesteps:
            both = model(torch.cat([x, x]), time.expand(4), contexts, transformer_options={})
            other, conditional = both.chunk(2)
            x = scheduler.step(other + 3 * (conditional - other), time, x)[0]
    torch.testing.assert_close(own, x, rtol=1e-4, atol=1e-4)


@KINDS
def test_prompts_in_one_call_or_two(kind: Any) -> None:
    _, cached = patcher_of(random_model(kind))
    together = sampled(cached)
    apart = sampled(cached, batches=lambda step: False)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


@KINDS
def test_prompts_whose_batches_change(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A step whose calls have no history is full, and nothing of one prompt reaches the other."""
    plain, cached = patcher_of(random_model(kind))
    full = sampled(plain)
    near = sampled(cached, batches=lambda step: step < 9 or step > 12)
    assert (near - full).norm() / full.norm() < 0.1
    assert "steps full" in summary(caplog)


def test_samplings_one_after_another_are_fresh() -> None:
    _, cached = patcher_of(random_model())
    first, second = sampled(cached), sampled(cached, seed=1)
    larger = sampled(cached, side=6)
    for picture, options in ((first, {}), (second, {"seed": 1}), (larger, {"side": 6})):
        _, fresh = patcher_of(random_model())
        assert torch.equal(sampled(fresh, **options), picture)


def test_an_interrupt_leaves_nothing_behind() -> None:
    model = random_model()
    plain, cached = patcher_of(model)
    expected, full = sampled(cached), sampled(plain)

    def interrupted(predict: Any, x: Tensor, sigmas: Tensor) -> Tensor:
        for sigma in sigmas[:7]:
            predict(x, sigma.expand(len(x)))
        raise Interrupted

    with pytest.raises(Interrupted):
        sampled(cached, function=named("sample_euler", interrupted))
    assert not relcache.api.is_enabled(model)
    assert torch.equal(sampled(plain), full)
    assert torch.equal(sampled(cached), expected)


def named(name: str, function: Any) -> Any:
    function.__name__ = name
    return function


def test_weights_that_a_lora_changes_in_place() -> None:
    model, other = random_model(), random_model(seed=1)
    _, cached = patcher_of(model)
    sampled(cached)
    with torch.no_grad():
        for weight, new in zip(model.parameters(), other.parameters(), strict=True):
            weight.copy_(new)
    _, fresh = patcher_of(other)
    assert torch.equal(sampled(cached), sampled(fresh))


def test_sigmas_that_are_split_over_two_samplers(caplog: pytest.LogCaptureFixture) -> None:
    """The same guider, and so the same prompts' names, in two samplings with a budget each."""
    plain, cached = patcher_of(random_model(), full_steps=5)
    sigmas = sigmas_of(STEPS)
    pictures = []
    for patcher in (plain, cached):
        guider, euler = Guider(patcher), sampler(sample_euler)
        half = guider.sample(noise(), euler, sigmas[:11])
        pictures.append(guider.sample(half / sigmas[10], euler, sigmas[10:]))
    assert [record.getMessage().count("5 of 10 steps full") for record in caplog.records] == [1, 1]
    assert (pictures[1] - pictures[0]).norm() / pictures[0].norm() < 0.05


def test_inpainting_keeps_what_the_mask_keeps(caplog: pytest.LogCaptureFixture) -> None:
    _, cached = patcher_of(random_model())
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    picture = Guider(cached).sample(noise(), sampler(sample_euler), sigmas_of(STEPS), mask)
    assert picture[..., 2:].abs().max() < 1e-5
    assert picture[..., :2].abs().max() > 0.1


def test_a_control_that_is_added_between_the_blocks() -> None:
    plain, cached = patcher_of(random_model())
    pictures = []
    for patcher in (plain, cached):
        guider = Guider(patcher)
        guider.control = {"input": [0.3, 0.2]}
        pictures.append(guider.sample(noise(), sampler(sample_euler), sigmas_of(STEPS)))
    assert (pictures[1] - pictures[0]).norm() / pictures[0].norm() < 0.05


def test_a_sampler_that_remembers_is_not_corrected(caplog: pytest.LogCaptureFixture) -> None:
    plain, cached = patcher_of(random_model())
    full, near = (sampled(patcher, function=sample_dpmpp_2m) for patcher in (plain, cached))
    assert "not corrected" in summary(caplog)
    assert (near - full).norm() / full.norm() < 0.1


@pytest.mark.parametrize(
    ("options", "function", "reason"),
    [
        ({}, sample_heun, "the sampler heun may call the model several times"),
        ({"full_steps": 30}, sample_euler, "there is nothing to skip"),
    ],
)
def test_off_with_a_reason(
    options: dict[str, Any], function: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, cached = patcher_of(random_model(), **options)
    assert torch.equal(sampled(plain, function=function), sampled(cached, function=function))
    assert f"relcache is off: {reason}" in summary(caplog)


def test_off_where_the_model_is_compiled(caplog: pytest.LogCaptureFixture) -> None:
    _, cached = patcher_of(random_model())
    cached.add_wrapper_with_key(
        "apply_model", "torch.compile", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    sampled(cached)
    assert "relcache is off: the model is compiled by TorchCompileModel" in summary(caplog)


def test_a_model_that_the_node_does_not_know(caplog: pytest.LogCaptureFixture) -> None:
    class UNet(Flux):
        pass

    UNet.__mro__[1].__name__ = "Other"
    try:
        plain, cached = patcher_of(random_model(UNet))
        assert torch.equal(sampled(plain), sampled(cached))
        assert "this model is a UNet" in summary(caplog)
    finally:
        Flux.__name__ = "Flux"


@pytest.mark.parametrize("forecaster", list(relcache_comfyui.sampling.FORECASTERS))
def test_every_forecaster_meets_its_budget(forecaster: str, caplog: pytest.LogCaptureFixture) -> None:
    _, cached = patcher_of(random_model(), forecaster=forecaster)
    sampled(cached)
    assert f"{FULL} of {STEPS} steps full" in summary(caplog)


def test_one_node_after_another_replaces_it(caplog: pytest.LogCaptureFixture) -> None:
    _, first = patcher_of(random_model())
    node = relcache_comfyui.NODE_CLASS_MAPPINGS["Relcache"]()
    second = node.apply(first, 5, "reuse", False)[0]
    sampled(second)
    assert [record.getMessage()[:24] for record in caplog.records] == ["relcache: 5 of 20 steps "]


def test_inputs_are_those_of_the_function() -> None:
    node = relcache_comfyui.NODE_CLASS_MAPPINGS["Relcache"]
    inputs = node.INPUT_TYPES()
    assert {*inputs["required"], *inputs["hidden"]} == {"model", "full_steps", "forecaster", "correction", "node"}
