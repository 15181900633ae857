"""What pipelines do to the denoising loop: parts of it, other timesteps, two calls a step, interrupts, other sizes."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from small_pipelines import PROMPT, Built, flux, pixart, stable_diffusion_3, wan
from torch import Tensor

import relcache
from relcache import FORA, RFC, TaylorSeer

STEPS = 10
PICTURE = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(5))


def run(built: Built, steps: int | None = STEPS, **options: Any) -> Tensor:
    pipe, call = built
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "generator": torch.Generator().manual_seed(0), **options}
    if steps is not None:
        call["num_inference_steps"] = steps
    return torch.as_tensor(pipe(**call, output_type="latent", return_dict=False)[0])


@pytest.mark.parametrize("kind", [diffusers.FluxImg2ImgPipeline, diffusers.FluxInpaintPipeline])
def test_a_picture_that_is_only_reworked(kind: type[Any]) -> None:
    """With strength 0.6 the loop makes the last six of ten steps: they are steps 0 to 5 of the request."""
    built = flux(kind)
    options = {"image": PICTURE, "strength": 0.6}
    if kind is diffusers.FluxInpaintPipeline:
        options["mask_image"] = torch.ones(1, 1, 16, 24)
    full = run(built, **options)
    with relcache.enable(built[0], TaylorSeer(1, interval=4)) as handle:
        cached = run(built, **options)
        assert handle.report().steps == 6
        assert handle.report().full_steps == [0, 1, 5]
    with relcache.enable(built[0], RFC(1, threshold=1e9, full_last=2)) as handle:
        run(built, **options)
        assert handle.report().full_steps == [0, 1, 4, 5], "the number of steps is known"
    assert not torch.equal(cached, full)
    assert torch.equal(run(built, **options), full)


@pytest.mark.parametrize("make", [flux, stable_diffusion_3])
def test_sigmas_of_ones_own(make: Any) -> None:
    built, sigmas = make(), [1.0, 0.97, 0.9, 0.8, 0.6, 0.5, 0.3, 0.1]
    with relcache.enable(built[0], FORA(3)) as handle:
        run(built, None, sigmas=sigmas)
    assert handle.report().steps == len(sigmas)
    assert handle.report().full_steps == [0, 1, 4, 7]


def test_timesteps_of_ones_own() -> None:
    built, timesteps = pixart(), [900, 850, 700, 500, 400, 300, 150, 20]
    built[0].scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++")
    with relcache.enable(built[0], FORA(3)) as handle:
        run(built, None, timesteps=timesteps)
    assert handle.report().steps == len(timesteps)
    assert handle.report().full_steps == [0, 1, 4, 7]


@pytest.mark.parametrize("make", [stable_diffusion_3, wan], ids=["joint batch", "two branches"])
def test_a_scheduler_of_the_second_order(make: Any) -> None:
    """Heun calls the model twice in each step but the last; each call is a step of the report."""
    pipe, call = make()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    full = run((pipe, call), 6)
    with relcache.enable(pipe, TaylorSeer(1, interval=4)) as handle:
        cached = run((pipe, call), 6)
    report = handle.report()
    assert report.steps == 2 * 6 - 1
    assert report.full_steps == [0, 1, 5, 9]
    assert not report.notes
    assert not torch.equal(cached, full)
    assert bool(torch.isfinite(cached).all())


def test_a_scheduler_of_several_orders() -> None:
    pipe, call = wan()
    pipe.scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    with relcache.enable(pipe, TaylorSeer(1, interval=4)) as handle:
        run((pipe, call))
    assert handle.report().steps == STEPS
    assert handle.report().full_steps == [0, 1, 5, 9]


def test_an_interrupt_from_a_callback() -> None:
    """The loop runs out without calling the model; the next request begins clean."""
    pipe, call = flux()

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= 3
        return tensors

    with relcache.enable(pipe, TaylorSeer(2, interval=4)) as handle:
        clean = run((pipe, call))
        run((pipe, call), callback_on_step_end=stop)
        assert handle.report().steps == 4
        assert torch.equal(run((pipe, call)), clean)
        assert handle.report().full_steps == [0, 1, 5, 9]


def test_batches_and_several_pictures_of_one_prompt() -> None:
    """A fixed schedule: a picture is the same alone, beside another prompt's, and as one of several."""
    built = flux()
    prompts = [PROMPT, "a cat"]
    with relcache.enable(built[0], TaylorSeer(1, interval=4)):
        alone = [run(built, prompt=prompt) for prompt in prompts]
        generators = [torch.Generator().manual_seed(0) for _ in prompts]
        together = run(built, prompt=prompts, generator=generators)
        several = run(built, num_images_per_prompt=2, generator=[torch.Generator().manual_seed(0) for _ in range(2)])
    for number, picture in enumerate(alone):
        assert torch.allclose(picture[0], together[number], atol=1e-4)
    assert torch.allclose(several[0], alone[0][0], atol=1e-4)
    assert torch.allclose(several[1], alone[0][0], atol=1e-4)


def test_other_steps_and_sizes_between_calls() -> None:
    built = flux()
    clean = {}
    for options in ({"steps": 10}, {"steps": 6}, {"steps": 10, "height": 32}, {"steps": 10}):
        with relcache.enable(built[0], TaylorSeer(2, interval=3)):
            clean[str(options)] = run(built, **options)
    with relcache.enable(built[0], TaylorSeer(2, interval=3)) as handle:
        for options in ({"steps": 10}, {"steps": 6}, {"steps": 10, "height": 32}, {"steps": 10}):
            assert torch.equal(run(built, **options), clean[str(options)])
            assert handle.report().steps == options["steps"]
            assert handle.report().full_steps == [0, 1, *range(4, options["steps"], 3)]
            assert not handle.report().notes


def test_experts_share_the_steps_and_not_the_features() -> None:
    """Wan 2.2: the second expert's first step is full, and the first one's features are dropped."""
    pipe, call = wan(experts=2)
    with relcache.enable(pipe, RFC(1, threshold=1e9)) as handle:
        run((pipe, call))
        report = handle.report()
        both = handle.estimate(call["height"], width=call["width"], frames=call["num_frames"], branches=2, text=24)
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    switch = sum(bool(t >= boundary) for t in pipe.scheduler.timesteps)
    assert 2 < switch < STEPS - 2
    assert report.full_steps == [0, 1, switch, switch + 1]
    assert report.units == 2 * 6
    assert handle.units[0] == "transformer.blocks.0.attn1"
    assert handle.units[6] == "transformer_2.blocks.0.attn1"
    with relcache.enable(wan()[0], RFC(1, threshold=1e9)) as alone:
        size = {"width": call["width"], "frames": call["num_frames"]}
        assert alone.estimate(call["height"], **size, branches=2, text=24) == both
    assert abs(report.cache_bytes - both) <= 0.05 * both


def flux_kontext() -> tuple[Built, dict[str, Any]]:
    """The picture to be edited is more tokens beside the noisy ones."""
    options = {"image": PICTURE, "max_area": 16 * 24, "_auto_resize": False}
    return flux(diffusers.FluxKontextPipeline), options


def flux_fill() -> tuple[Built, dict[str, Any]]:
    """Masked picture and mask are more channels of each token."""
    channels = 16 + 16 + 4 * 2 * 2
    options = {"image": PICTURE, "mask_image": torch.ones(1, 1, 16, 24), "strength": 1.0}
    return flux(diffusers.FluxFillPipeline, in_channels=channels, out_channels=16), options


def flux_control() -> tuple[Built, dict[str, Any]]:
    """The picture that controls is more channels of each token."""
    return flux(diffusers.FluxControlPipeline, in_channels=32, out_channels=16), {"control_image": PICTURE}


@pytest.mark.parametrize("make", [flux_kontext, flux_fill, flux_control])
def test_the_other_pipelines_of_flux(make: Any) -> None:
    built, options = make()
    full = run(built, **options)
    with relcache.enable(built[0], TaylorSeer(1, interval=4)) as handle:
        cached = run(built, **options)
        report = handle.report()
    assert report.full_steps == [0, 1, 5, 9]
    assert not report.notes
    assert bool(torch.isfinite(cached).all())
    assert not torch.equal(cached, full)
    assert torch.equal(run(built, **options), full)
