"""Gaps made good: against a naive replay that knows nothing of the library, and where it is off."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from oracle import Oracle, Recipe
from tiny import BETAS, TRAIN_STEPS, noise_for, tiny_dit
from torch import Tensor

import relcache
from relcache import Always, Interval, Replay, Taylor

STEPS = 16
LABELS = torch.tensor([3, 5])
DIFFUSION = {"num_train_timesteps": TRAIN_STEPS, "beta_start": BETAS[0], "beta_end": BETAS[1]}
FLOW = {"num_train_timesteps": TRAIN_STEPS, "shift": 2.0}
Make = Callable[[], Any]
DETERMINISTIC: dict[str, Make] = {
    "flow Euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(**FLOW),
    "DDIM": lambda: diffusers.DDIMScheduler(**DIFFUSION, clip_sample=False),
    "DDIM, v": lambda: diffusers.DDIMScheduler(**DIFFUSION, clip_sample=False, prediction_type="v_prediction"),
    "DDIM, clean": lambda: diffusers.DDIMScheduler(**DIFFUSION, clip_sample=False, prediction_type="sample"),
    "Euler": lambda: diffusers.EulerDiscreteScheduler(**DIFFUSION),
    "DPM-Solver++": lambda: diffusers.DPMSolverMultistepScheduler(**DIFFUSION),
    "DPM-Solver++ of order 3": lambda: diffusers.DPMSolverMultistepScheduler(**DIFFUSION, solver_order=3),
    "DPM-Solver++, flow": lambda: diffusers.DPMSolverMultistepScheduler(
        **DIFFUSION, use_flow_sigmas=True, prediction_type="flow_prediction"
    ),
    "DPM-Solver++, one step": lambda: diffusers.DPMSolverSinglestepScheduler(**DIFFUSION),
    "UniPC": lambda: diffusers.UniPCMultistepScheduler(**DIFFUSION),
    "UniPC, flow": lambda: diffusers.UniPCMultistepScheduler(
        **DIFFUSION, use_flow_sigmas=True, prediction_type="flow_prediction"
    ),
    "DEIS": lambda: diffusers.DEISMultistepScheduler(**DIFFUSION),
    "IPNDM": lambda: diffusers.IPNDMScheduler(TRAIN_STEPS),
    "LMS": lambda: diffusers.LMSDiscreteScheduler(**DIFFUSION),
    "PNDM": lambda: diffusers.PNDMScheduler(**DIFFUSION, skip_prk_steps=True),
    "Heun": lambda: diffusers.HeunDiscreteScheduler(**DIFFUSION),
    "flow Heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(**FLOW),
    "KDPM2": lambda: diffusers.KDPM2DiscreteScheduler(**DIFFUSION),
}


def sampled(model: Any, scheduler: Any, steps: int = STEPS, **step_options: Any) -> Tensor:
    """A loop as diffusers' pipelines write it."""
    scheduler.set_timesteps(steps)
    sample = noise_for([1, 2]) * getattr(scheduler, "init_noise_sigma", 1.0)
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        with torch.no_grad():
            output = model(scaled, timestep=time.expand(2), class_labels=LABELS).sample
        sample = scheduler.step(output, time, sample, **step_options).prev_sample
    return sample


def weight(node: int, at: int, nodes: list[int]) -> float:
    """The Lagrange polynomial of `node` at `at`."""
    value = 1.0
    for other in nodes:
        value *= (at - other) / (node - other) if other != node else 1.0
    return value


def naive(
    scheduler: Any, full: list[int], degree: int, theta: float, sigma: Callable[[Any, Any], float] | None
) -> Tensor:
    """The same with every gap replayed, from the formulas: forecasts by the oracle, updates by copies of schedulers."""
    model = tiny_dit()
    oracle = Oracle(model, Recipe("taylor", 1, interval=4), STEPS)
    scheduler.set_timesteps(STEPS)
    sample = noise_for([1, 2]) * getattr(scheduler, "init_noise_sigma", 1.0)
    schedulers, samples, outputs = {}, {}, {}
    times = list(scheduler.timesteps)
    for step, time in enumerate(times):
        schedulers[step], samples[step] = copy.deepcopy(scheduler), sample
        oracle.begin_step()
        scaled = scheduler.scale_model_input(sample, time) if hasattr(scheduler, "scale_model_input") else sample
        output = oracle(scaled, time.expand(2), LABELS)
        if oracle.full and step and step - 1 not in oracle.full_steps:
            before = [past for past in oracle.full_steps if past < step][-degree:]
            known = {**{past: outputs[past] for past in before}, step: output}
            first = before[-1] + 1

            again, replayed = copy.deepcopy(schedulers[first]), samples[first]
            for past in range(first, step):
                mixed = torch.zeros_like(output)
                for node, value in known.items():
                    mixed = mixed + weight(node, past, list(known)) * value
                replayed = again.step(mixed, times[past], replayed).prev_sample
            moved = replayed - sample
            if theta:
                # the response of the end to v_n, by moving it: the updates are linear
                again_moved, moved_sample = copy.deepcopy(schedulers[first]), samples[first].double()
                still, still_sample = copy.deepcopy(schedulers[first]), samples[first].double()
                for past in range(first, step):
                    mixed = torch.zeros_like(output).double()
                    for node, value in known.items():
                        mixed = mixed + weight(node, past, list(known)) * value.double()
                    still_sample = still.step(mixed, times[past], still_sample).prev_sample
                    moved_sample = again_moved.step(
                        mixed + weight(step, past, list(known)), times[past], moved_sample
                    ).prev_sample
                slope = 1 / sigma(scheduler, time)
                rho = -float((moved_sample - still_sample).mean()) * slope
                moved = moved / (1 + theta * rho)
                output = output + theta * slope * moved
            sample, scheduler = sample + moved, again
        outputs[step] = output
        sample = scheduler.step(output, time, sample).prev_sample
    assert oracle.full_steps == full
    return sample


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("degree", [1, 2])
def test_agrees_with_a_naive_replay(name: str, degree: int) -> None:
    """Gaps of every deterministic scheduler, those of several steps and of the second order too."""
    model, make = tiny_dit(), DETERMINISTIC[name]
    scheduler = make()
    handle = relcache.enable(
        model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(degree, 0.0), scheduler=scheduler
    )
    made = sampled(model, scheduler)
    report = handle.report()
    handle.disable()
    assert report.notes == []
    assert [step for step, _ in report.corrections] == [step for step in report.full_steps if step > 1]
    plain = relcache.enable(model, forecaster=Taylor(1), schedule=Interval(4), scheduler=scheduler)
    uncorrected = sampled(model, scheduler)
    plain.disable()
    expected = naive(make(), report.full_steps, degree, 0.0, None)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert (made - expected).abs().max() < 0.1 * (uncorrected - made).abs().max()


SIGMAS: dict[str, Callable[[Any, Any], float]] = {
    "DDIM": lambda scheduler, time: float((1 - scheduler.alphas_cumprod[time]) ** 0.5),
    "flow Euler": lambda scheduler, time: float(time) / TRAIN_STEPS,
    "Euler": lambda scheduler, time: float(scheduler.sigmas[scheduler.step_index]),
}


@pytest.mark.parametrize("name", SIGMAS)
@pytest.mark.parametrize("theta", [0.3, 1.0])
def test_the_end_of_a_gap_holds_the_clean_sample(name: str, theta: float) -> None:
    model, make = tiny_dit(), DETERMINISTIC[name]
    scheduler = make()
    with relcache.enable(
        model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(1, theta), scheduler=scheduler
    ) as handle:
        made = sampled(model, scheduler)
    expected = naive(make(), handle.full_steps, 1, theta, SIGMAS[name])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_full_compute_is_untouched() -> None:
    """With every step full there is no gap, and each output goes to the scheduler as it is."""
    for make in DETERMINISTIC.values():
        model, scheduler = tiny_dit(), make()
        expected = sampled(model, scheduler)
        with relcache.enable(
            model, forecaster=Taylor(1), schedule=Always(), corrector=Replay(2), scheduler=scheduler
        ) as handle:
            assert torch.equal(sampled(model, scheduler), expected)
            assert handle.report().corrections == []


def test_disabled_schedulers_are_as_before() -> None:
    model, scheduler = tiny_dit(), DETERMINISTIC["DDIM"]()
    expected = sampled(model, scheduler)
    handle = relcache.enable(model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(), scheduler=scheduler)
    sampled(model, scheduler)
    assert "step" in vars(scheduler)
    copied = copy.deepcopy(scheduler)
    handle.disable()
    assert "step" not in vars(scheduler)
    assert torch.equal(sampled(model, scheduler), expected)
    assert torch.equal(sampled(model, copied), expected)


RANDOM: dict[str, tuple[Make, dict[str, Any]]] = {
    "DDIM, eta": (DETERMINISTIC["DDIM"], {"eta": 1.0}),
    "DDPM": (lambda: diffusers.DDPMScheduler(**DIFFUSION), {}),
    "ancestral": (lambda: diffusers.EulerAncestralDiscreteScheduler(**DIFFUSION), {}),
    "SDE": (lambda: diffusers.DPMSolverMultistepScheduler(**DIFFUSION, algorithm_type="sde-dpmsolver++"), {}),
    "LCM": (lambda: diffusers.LCMScheduler(**DIFFUSION, original_inference_steps=200), {}),
    "flow LCM": (lambda: diffusers.FlowMatchLCMScheduler(**FLOW), {}),
    "stochastic flow": (lambda: diffusers.FlowMatchEulerDiscreteScheduler(**FLOW, stochastic_sampling=True), {}),
}


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("name", RANDOM)
def test_stochastic_schedulers_are_not_corrected(name: str, own_generator: bool) -> None:
    """The picture is the uncorrected one, and the report says why."""
    make, options = RANDOM[name]
    model = tiny_dit()
    made = []
    for corrector in (None, Replay()):
        scheduler = make()
        generator = torch.Generator().manual_seed(7) if own_generator else None
        torch.manual_seed(7)
        with (
            warnings.catch_warnings(),
            relcache.enable(
                model, forecaster=Taylor(1), schedule=Interval(4), corrector=corrector, scheduler=scheduler
            ) as handle,
        ):
            warnings.simplefilter("ignore")
            made.append(sampled(model, scheduler, generator=generator, **options))
            report = handle.report()
    assert torch.equal(*made)
    assert report.corrections == []
    assert any("draws random numbers" in note for note in report.notes)


def test_updates_that_nobody_shows() -> None:
    """A loop that steps by itself: uncorrected, and the report says what to do."""
    model, scheduler = tiny_dit(), DETERMINISTIC["DDIM"]()
    with relcache.enable(
        model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(), num_inference_steps=STEPS
    ) as handle:
        sampled(model, scheduler)
        report = handle.report()
    assert report.corrections == []
    assert any("pass the scheduler=" in note for note in report.notes)


def test_a_step_that_other_code_has_replaced() -> None:
    model, scheduler = tiny_dit(), DETERMINISTIC["DDIM"]()
    own = scheduler.step
    scheduler.step = lambda *args, **kwargs: own(*args, **kwargs)
    with (
        pytest.warns(UserWarning, match=r"other code has replaced scheduler\.step"),
        relcache.enable(
            model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(), scheduler=scheduler
        ) as handle,
    ):
        sampled(model, scheduler)
    assert handle.report().corrections == []


@pytest.mark.filterwarnings("ignore:relcache")
def test_two_updates_after_one_call() -> None:
    """As pipelines do that ask the scheduler for the clean sample, and set its index back."""
    model, scheduler = tiny_dit(), DETERMINISTIC["Euler"]()
    scheduler.set_timesteps(STEPS)
    sample = noise_for([1, 2]) * scheduler.init_noise_sigma
    with relcache.enable(
        model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(), scheduler=scheduler
    ) as handle:
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, time)
            with torch.no_grad():
                output = model(scaled, timestep=time.expand(2), class_labels=LABELS).sample
            scheduler.step(output, time, sample)
            scheduler._step_index -= 1
            sample = scheduler.step(output, time, sample).prev_sample
    assert handle.report().corrections == []
    assert any("several updates after one call" in note for note in handle.report().notes)


def test_overwritten_parts_stay_as_the_pipeline_made_them() -> None:
    """Half of the sample is set anew after each update, as inpainting does: that half is what it would be anyway."""
    model = tiny_dit()
    kept = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    kept[..., 4:] = True
    seen: list[Tensor] = []
    for corrector in (None, Replay(1, 0.0)):
        scheduler = DETERMINISTIC["flow Euler"]()
        scheduler.set_timesteps(STEPS)
        with relcache.enable(
            model, forecaster=Taylor(1), schedule=Interval(4), corrector=corrector, scheduler=scheduler
        ) as handle:
            sample = noise_for([1, 2])
            for time in scheduler.timesteps:
                with torch.no_grad():
                    output = model(sample, timestep=time.expand(2), class_labels=LABELS).sample
                sample = scheduler.step(output, time, sample).prev_sample
                sample = torch.where(kept, sample, torch.full_like(sample, 0.25) * time / TRAIN_STEPS)
            report = handle.report()
        seen.append(sample)
    assert len(report.corrections) == (3 if corrector else 0)
    assert report.notes == [
        "between two updates the pipeline overwrote up to 50.0% of the sample, which is not corrected"
    ]
    assert torch.equal(*(sample[~kept.expand_as(sample)] for sample in seen))
    assert not torch.equal(*seen)


def test_a_sample_that_is_replaced_whole() -> None:
    model, scheduler = tiny_dit(), DETERMINISTIC["flow Euler"]()
    scheduler.set_timesteps(STEPS)
    with relcache.enable(
        model, forecaster=Taylor(1), schedule=Interval(4), corrector=Replay(), scheduler=scheduler
    ) as handle:
        sample = noise_for([1, 2])
        for step, time in enumerate(scheduler.timesteps):
            with torch.no_grad():
                output = model(sample, timestep=time.expand(2), class_labels=LABELS).sample
            sample = scheduler.step(output, time, sample).prev_sample
            sample = sample * 1.01 if step == 6 else sample
        report = handle.report()
    assert [step for step, _ in report.corrections] == [5, 13]
    assert report.fallbacks == {"gap in which the pipeline replaced the sample: not corrected": 1}


def test_updates_that_cannot_be_repeated() -> None:
    """The request goes on as it would have without a corrector."""

    class Counting(diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
            if getattr(self, "last_time", timestep + 1) <= timestep:
                raise RuntimeError("time runs backwards")
            type(self).last_time = timestep
            return super().step(model_output, timestep, sample, **options)

    made, model = [], tiny_dit()
    for corrector in ("none", "replay"):
        scheduler = Counting(**FLOW)
        Counting.last_time = torch.tensor(2000.0)
        handle = relcache.enable(
            model, forecaster=Taylor(1), schedule=Interval(4), corrector=corrector, scheduler=scheduler
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.append(sampled(model, scheduler))
        assert handle.report().corrections == []
    assert any("could not be repeated (RuntimeError: time runs backwards)" in note for note in handle.report().notes)
    assert torch.equal(*made)


def test_schedulers_with_arguments_of_their_own() -> None:
    """Keywords of any name reach the scheduler as they were given; positions that nobody named are left alone."""

    class Free(diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **extra: Any) -> Any:
            assert extra.pop("marked") == "yes"
            return super().step(model_output, timestep, sample, **extra)

    class Positional(diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *more: Any) -> Any:
            assert more == ("yes",)
            return super().step(model_output, timestep, sample)

    model = tiny_dit()
    scheduler = Free(**FLOW)
    with relcache.enable(model, full_steps=5, scheduler=scheduler) as handle:
        sampled(model, scheduler, marked="yes")
        assert len(handle.report().corrections) > 0
    scheduler = Positional(**FLOW)
    scheduler.set_timesteps(STEPS)
    with warnings.catch_warnings(), relcache.enable(model, full_steps=5, scheduler=scheduler) as handle:
        warnings.simplefilter("ignore")
        sample = noise_for([1, 2])
        for time in scheduler.timesteps:
            with torch.no_grad():
                output = model(sample, timestep=time.expand(2), class_labels=LABELS).sample
            sample = scheduler.step(output, time, sample, "yes").prev_sample
        assert any("does not take its arguments by name" in note for note in handle.report().notes)
