"""Real pipelines of diffusers, end to end on the CPU: full compute, FORA, TaylorSeer, RFC, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_pipelines import BUILDERS, Built
from torch import Tensor

import relcache
from relcache import FORA, RFC, Method, TaylorSeer

STEPS = 10
METHODS = [FORA(4), TaylorSeer(1, interval=4), RFC(1, threshold=1e9), RFC(2, threshold=1e9)]

# How each pipeline guides: the branches that the transformer is called with, and its rows for one picture.
BRANCHES = {
    "FluxPipeline": (["cond"], 1),
    "HunyuanVideoPipeline": (["cond"], 1),
    "WanPipeline": (["cond", "uncond"], 1),
    "WanPipeline, two experts": (["cond", "uncond"], 1),
    "StableDiffusion3Pipeline": (["0"], 2),
    "PixArtSigmaPipeline": (["0"], 2),
    "QwenImagePipeline": (["cond", "uncond"], 1),
    "CogVideoXPipeline": (["cond_uncond"], 2),
    "LTXPipeline": (["cond_uncond"], 2),
    "DiTPipeline": (["0"], 2),
}


def run(built: Built, steps: int = STEPS, **options: Any) -> Tensor:
    pipe, call = built
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), **options}
    if type(pipe).__name__ == "DiTPipeline":
        return torch.as_tensor(pipe(**call, output_type="pt").images)
    return torch.as_tensor(pipe(**call, output_type="latent", return_dict=False)[0])


@pytest.fixture(scope="module", params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(name: str) -> tuple[Built, Tensor]:
    pipe = BUILDERS[name]()
    return pipe, run(pipe)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.forecaster}")
def test_a_pipeline_from_end_to_end(name: str, built: tuple[Built, Tensor], method: Method) -> None:
    (pipe, call), full = built
    if method.name == "RFC":  # with the threshold that gives some full steps: half of the error of a run without any
        with relcache.enable(pipe, method) as handle:
            run((pipe, call))
            method = method.with_threshold(sum(error or 0.0 for error in handle.report().signal) / 2)
    with relcache.enable(pipe, method) as handle:
        cached = run((pipe, call))
        report = handle.report()
        again = run((pipe, call))
        assert handle.report().full_steps == report.full_steps
    assert bool(torch.isfinite(cached).all())
    assert not torch.equal(cached, full)
    assert torch.equal(cached, again), "a second request begins clean"
    assert report.steps == STEPS
    branches, rows = BRANCHES[name]
    assert report.branches == branches
    assert report.batch == rows
    if method.name != "RFC":
        asked = {0, 1, 5, 9}
        assert set(report.full_steps) - asked == extra_steps(pipe, method)
    assert 2 < report.nfc < STEPS
    assert report.flops is not None
    assert report.flops < report.full_flops
    assert torch.equal(run((pipe, call)), full), "after disable() everything is as before"


def extra_steps(pipe: Any, method: Method) -> set[int]:
    """Steps that are full because the second expert has just taken over and has no history."""
    if getattr(pipe, "transformer_2", None) is None:
        return set()
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    switch = next(step for step, t in enumerate(pipe.scheduler.timesteps) if t < boundary)
    return set(range(switch, switch + method.forecaster.full_steps_needed)) - {0, 1, 5, 9}


@pytest.mark.parametrize("pictures", [1, 2])
def test_the_cache_is_as_large_as_estimated(name: str, built: tuple[Built, Tensor], pictures: int) -> None:
    (pipe, call), _ = built
    branches, rows = BRANCHES[name]
    size = {"height": call.get("height", 16), "width": call.get("width", 16), "frames": call.get("num_frames", 1)}
    with relcache.enable(pipe, RFC(2, threshold=1e-9)) as handle:
        if name == "DiTPipeline":
            run((pipe, {**call, "class_labels": [3] * pictures}))
        else:
            prompts = {key: [call[key]] * pictures for key in ("prompt", "negative_prompt") if key in call}
            run((pipe, call), **prompts)
        held = handle.report().cache_bytes
        text = text_tokens(name, call)
        estimate = handle.estimate(**size, batch=rows * pictures, branches=len(branches), text=text)
    assert abs(estimate - held) <= 0.05 * held


def text_tokens(name: str, call: dict[str, Any]) -> int:
    """Tokens that the transformer is called with: SD3 joins T5's to CLIP's."""
    return 77 + 256 if name == "StableDiffusion3Pipeline" else call.get("max_sequence_length", 0)
