"""Whose call is this: each request of a pipeline is as on a fresh one, or the user reads why not."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES
from requesting import STEPS, Stop, every_method, last, loop, options_of, run, stop_at, with_scheduler
from small_parts import t5_tokenizer, wan_vae
from small_pipelines import flux, flux_transformer, qwen_image, stable_diffusion_3
from tiny import run_pipeline, tiny_dit, tiny_pipeline
from torch import Tensor

import relcache
from relcache import FORA, RFC, RFE, Method, Plan, Taylor, TaylorSeer

OTHERS: dict[str, Callable[[Any], Any]] = {
    "own scheduler": with_scheduler,
    "from_pipe": type(flux()[0]).from_pipe,
    "another class": diffusers.FluxImg2ImgPipeline.from_pipe,
    "scheduler of another kind": lambda pipe: type(pipe)(
        **{
            **pipe.components,
            "scheduler": diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        }
    ),
}


def between(inner: Callable[[], Any], step: int = 3) -> Callable[..., Any]:
    """A callback that runs another request in the middle of one."""

    def callback(pipe: Any, present: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if present == step:
            inner()
        return tensors

    return callback


@every_method
@pytest.mark.parametrize("other", OTHERS)
def test_two_pipelines_share_an_enabled_transformer(other: str, method: Method) -> None:
    """In turn, broken off at the first step and later: each request is that of a pipeline by itself."""
    first, call = flux()
    second = OTHERS[other](first)
    pipes = {"first": first, "second": second}

    def picture(name: str, **options: Any) -> Tensor:
        return run(pipes[name], call, **options_of(pipes[name]), **options)

    fresh, steps = {}, {}
    for name in pipes:
        with relcache.enable(first, method) as handle:
            fresh[name], steps[name] = picture(name), handle.full_steps
    with relcache.enable(first, method) as handle:
        for name, broken, at in (("first", "second", 0), ("second", "first", 0), ("second", "second", 2),
                                 ("first", "first", 4), ("second", "first", 5), ("first", "second", 1)):  # fmt: skip
            with pytest.raises(Stop):
                picture(broken, seed=9, callback_on_step_end=stop_at(at))
            assert torch.equal(picture(name), fresh[name])
            assert handle.full_steps == steps[name]
            assert not handle.report().notes


@every_method
def test_a_request_within_another_ones_callback(method: Method) -> None:
    """Each has its own scheduler: the inner one, whole or broken off, leaves the outer one alone."""
    outer, call = flux()
    inner = with_scheduler(outer)
    with relcache.enable(outer, method) as handle:
        alone = run(outer, call), run(inner, call, seed=3)
        seen = []

        def whole() -> None:
            seen.append(run(inner, call, seed=3))

        def broken() -> None:
            with pytest.raises(Stop):
                run(inner, call, seed=4, callback_on_step_end=stop_at(2))

        for interlude in (whole, broken):
            assert torch.equal(run(outer, call, callback_on_step_end=between(interlude)), alone[0])
            assert handle.report().steps == STEPS
        assert torch.equal(seen[0], alone[1])


def test_the_enabled_pipeline_is_gone() -> None:
    first, call = flux()
    second = with_scheduler(first)
    handle = relcache.enable(first, TaylorSeer(1, interval=4))
    alone = run(second, call)
    del first
    gc.collect()
    assert torch.equal(run(second, call), alone)
    assert handle.full_steps == [0, 1, 5, 9]


def test_a_bare_transformer_is_enabled_and_pipelines_run() -> None:
    """Few steps, then a picture reworked a little with another prompt: told apart by the pipelines that run."""
    pipe, call = qwen_image()
    rework = diffusers.QwenImageImg2ImgPipeline(**pipe.components)
    options = {"image": torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)), "strength": 0.2}
    handle = relcache.enable(pipe.transformer, TaylorSeer(1, interval=4))
    fresh = run(rework, {**call, "prompt": "a red bus"}, steps=20, **options)
    handle.reset()
    run(pipe, call, steps=4)
    assert torch.equal(run(rework, {**call, "prompt": "a red bus"}, steps=20, **options), fresh)
    assert (handle.full_steps, handle.report().steps) == ([0, 1], 4)


def test_another_transformer_in_the_pipeline_is_noticed() -> None:
    pipe, call = flux()
    handle = relcache.enable(pipe, TaylorSeer(1, interval=4))
    run(pipe, call)
    pipe.transformer = flux_transformer()
    with pytest.warns(UserWarning, match=r"another one than the FluxTransformer2DModel.*enable\(pipeline\) again"):
        out = run(pipe, call)
    report = handle.report()
    assert (report.steps, report.full_steps) == (0, [])
    assert "is not cached" in report.notes[0]
    handle.disable()
    assert torch.equal(out, run(pipe, call))
    assert "progress_bar" not in vars(pipe)


def skyreels(frames: int) -> tuple[Any, dict[str, Any]]:
    """The pipeline that steps a copy of its scheduler for each frame of the latents."""
    family = next(one for one in FAMILIES if one.variant == "forcing")
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        t5_tokenizer(), None, family.model(), wan_vae(),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    )  # fmt: skip
    size = {"height": 16, "width": 16, "num_frames": frames, "base_num_frames": frames}
    return pipe, {**size, "prompt": None, "prompt_embeds": torch.randn(1, 5, 12), "guidance_scale": 1.0}


@pytest.mark.parametrize("ar_step", [0, 2])
def test_a_scheduler_that_is_copied_for_each_frame(ar_step: int) -> None:
    """SkyReels-V2: its own scheduler never moves, and with `ar_step` there are more steps than timesteps."""
    pipe, call = skyreels(13)
    options = {"ar_step": ar_step, "causal_block_size": 2} if ar_step else {}
    run(pipe, call, steps=6, **options)
    calls: list[int] = []
    hook = pipe.transformer.register_forward_hook(lambda *call: calls.append(1))
    run(pipe, call, steps=6, **options)
    expected = len(calls)
    assert expected == 6 if not ar_step else expected > 6
    with relcache.enable(pipe, TaylorSeer(1, interval=3)) as handle:
        alone = run(pipe, call, steps=6, **options)
        report = handle.report()
        assert (report.steps, report.full_steps) == (expected, [0, 1, *range(4, expected, 3)])
        assert not report.notes
        with pytest.raises(Stop):
            run(pipe, call, seed=5, steps=6, callback_on_step_end=stop_at(1), **options)
        assert torch.equal(run(pipe, call, steps=6, **options), alone)
    hook.remove()


# Requests that are legal


@pytest.mark.parametrize(
    "method", [FORA(4), TaylorSeer(2, interval=4), RFC(), RFE(1, interval=3)], ids=lambda method: method.name
)
@pytest.mark.parametrize("bare", [False, True])
def test_a_request_of_one_step(method: Method, bare: bool) -> None:
    pipe, call = flux()
    full = run(pipe, call, steps=1)
    with relcache.enable(pipe.transformer if bare else pipe, method) as handle:
        assert torch.equal(run(pipe, call, steps=1), full)
        assert handle.full_steps == [0]
        assert "fewer steps (1) than the warm-up (2)" in handle.report().notes[0]


def test_a_picture_that_is_hardly_reworked() -> None:
    pipe, call = flux(diffusers.FluxImg2ImgPipeline)
    with relcache.enable(pipe, RFC()) as handle:
        run(pipe, call, steps=20, image=torch.rand(1, 3, 16, 24), strength=0.05)
        assert handle.full_steps == [0]


def test_fewer_steps_than_the_warm_up_or_the_plan() -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, FORA(4, warmup=5)) as handle:
        run_pipeline(pipe, [3], steps=4)
        assert handle.full_steps == [0, 1, 2, 3]
        assert handle.report().notes == ["the request has fewer steps (4) than the warm-up (5): all of them are full"]
        run_pipeline(pipe, [3], steps=8)
        assert not handle.report().notes
    with relcache.enable(pipe, Method(Taylor(1), Plan([0, 1, 9, 12]))) as handle:
        run_pipeline(pipe, [3], steps=8)
        assert handle.full_steps == [0, 1]
        assert handle.report().notes == ["the Plan names steps that the request of 8 steps does not have: [9, 12]"]


# The record


def test_notes_are_those_of_the_last_request() -> None:
    pipe, call = stable_diffusion_3()

    def blend(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "prompt_embeds": tensors["prompt_embeds"] * 1.01}

    handle = relcache.enable(pipe, TaylorSeer(1, interval=4))
    with pytest.warns(UserWarning, match="conditioning changed"):
        run(pipe, call, steps=14, callback_on_step_end=blend,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])  # fmt: skip
    assert handle.report().notes
    run(pipe, call)
    assert (handle.full_steps, handle.report().notes) == ([0, 1, 5, 9], [])


def test_a_reset_is_of_this_thread() -> None:
    """What another thread samples goes on."""
    model, method = tiny_dit(), TaylorSeer(1, interval=4)
    handle = relcache.enable(model, method)
    outs, ready, go = [], threading.Event(), threading.Event()

    def work() -> None:
        samples = []
        for step, sample in enumerate(loop(model)):
            samples.append(sample)
            if step == 4:
                ready.set()
                go.wait(20)
        outs.append(samples[-1])

    alone = last(loop(model))
    handle.reset()
    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(20)
    handle.reset()
    go.set()
    thread.join()
    assert torch.equal(outs[0], alone)


@pytest.mark.parametrize("what", ["free", "disable", "reset"])
def test_a_handle_is_used_from_another_thread_while_a_call_runs(what: str) -> None:
    """It waits for the call's end; what comes after is as on a fresh model."""
    model, plain = tiny_dit(), tiny_dit()
    full = last(loop(plain))
    handle = relcache.enable(model, FORA(4))
    alone = last(loop(model))
    within, acted = threading.Event(), threading.Event()

    def act() -> None:
        within.wait(20)
        getattr(handle, what)()
        acted.set()

    def linger(*call: Any) -> None:
        if handle.full_steps == [0, 1] and handle.report().steps == 4 and not within.is_set():
            within.set()
            assert not acted.wait(0.3), "the call is in progress"

    thread = threading.Thread(target=act)
    thread.start()
    hook = model.transformer_blocks[0].norm1.register_forward_pre_hook(linger)
    got = last(loop(model))
    thread.join()
    hook.remove()
    assert acted.is_set()
    assert bool(got.isfinite().all())
    assert torch.equal(last(loop(model)), full if what == "disable" else alone)
