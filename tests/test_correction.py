"""Gaps made good: against a naive replay that knows nothing of the library, and where it is off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from oracle import Oracle, Recipe
from tiny import BETAS, TRAIN_STEPS, noise_for, tiny_dit
from torch import Tensor

import relcache
from relcache import Interval, Replay, Taylor

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
