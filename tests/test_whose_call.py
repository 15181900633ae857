"""Whose call is this: each request is as on a fresh pipeline, or the user reads why not."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import diffusers
import pytest
import torch
from families import FAMILIES
from small_pipelines import (
    flux,
    flux_transformer,
    qwen_image,
    stable_diffusion_3,
    t5_tokenizer,
    wan_vae,
)
from tiny import DiTWithContext, noise_for, run_pipeline, timesteps_for, tiny_dit, tiny_pipeline
from torch import Tensor

import relcache
from relcache import FORA, RFC, RFE, Method, Plan, Taylor, TaylorSeer

STEPS = 10
METHODS = [FORA(4), TaylorSeer(1, 4), RFC(2, 0.6)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
Run = Callable[[], Tensor]


class Stop(Exception):
    """Raised by a callback in the middle of a request."""


def run(pipe: Any, call: dict[str, Any], seed: int = 0, steps: int = STEPS, **options: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed), **options}
    return torch.as_tensor(pipe(**call, output_type="latent", return_dict=False)[0])


def with_scheduler(pipe: Any) -> Any:
    """A second pipeline around the same models, with a scheduler of its own."""
    return type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})


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


def options_of(pipe: Any) -> dict[str, Any]:
    if isinstance(pipe, diffusers.FluxImg2ImgPipeline):
        return {"image": torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(5)), "strength": 0.8}
    return {}


def stop_at(step: int) -> Callable[..., Any]:
    def callback(pipe: Any, present: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if present == step:
            raise Stop
        return tensors

    return callback


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
    handle = relcache.enable(first, TaylorSeer(1, 4))
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
    handle = relcache.enable(pipe.transformer, TaylorSeer(1, 4))
    fresh = run(rework, {**call, "prompt": "a red bus"}, steps=20, **options)
    handle.reset()
    run(pipe, call, steps=4)
    assert torch.equal(run(rework, {**call, "prompt": "a red bus"}, steps=20, **options), fresh)
    assert (handle.full_steps, handle.report().steps) == ([0, 1], 4)


def test_another_transformer_in_the_pipeline_is_noticed() -> None:
    pipe, call = flux()
    handle = relcache.enable(pipe, TaylorSeer(1, 4))
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
    with relcache.enable(pipe, TaylorSeer(1, 3)) as handle:
        alone = run(pipe, call, steps=6, **options)
        report = handle.report()
        assert (report.steps, report.full_steps) == (expected, [0, 1, *range(4, expected, 3)])
        assert not report.notes
        with pytest.raises(Stop):
            run(pipe, call, seed=5, steps=6, callback_on_step_end=stop_at(1), **options)
        assert torch.equal(run(pipe, call, steps=6, **options), alone)
    hook.remove()


# Loops written by hand on a bare transformer


def loop(
    model: Any, seed: int = 0, label: int = 3, steps: int = STEPS, start: int = 0, stop: int | None = None,
    timesteps: list[Any] | None = None, rows: int = 2,
) -> Iterator[Tensor]:  # fmt: skip
    """Samples of a loop that makes a new timestep and new conditioning at each step."""
    sample = noise_for(list(range(10 * seed, 10 * seed + rows)))
    table = timesteps if timesteps is not None else timesteps_for(steps).tolist()
    for step, time in list(enumerate(table))[start:stop]:
        with torch.no_grad():
            time = time if isinstance(time, Tensor) else torch.full((rows,), float(time))
            out = model(sample, timestep=time.expand(rows), class_labels=torch.full((rows,), label)).sample
        sample = sample + 0.1 * out / out.norm() * sample.norm() + 0 * step
        yield sample


def last(samples: Iterator[Tensor]) -> Tensor:
    return list(samples)[-1]


BEFORE: dict[str, dict[str, Any]] = {
    "other prompt": {"label": 7, "seed": 5},
    "other prompt, broken off": {"label": 7, "seed": 5, "stop": 4},
    "other prompt, one step": {"label": 7, "seed": 5, "stop": 1},
    "other seed": {"seed": 5},
    "other seed, broken off": {"seed": 5, "stop": 4},
    "other batch": {"rows": 3, "seed": 5},
    "other batch, broken off": {"rows": 3, "seed": 5, "stop": 3},
    "other number of steps": {"seed": 5, "steps": 6},
    "a later part": {"seed": 5, "start": 5, "stop": 8},
}
AFTER: dict[str, dict[str, Any]] = {
    "from the beginning": {},
    "at a later timestep": {"start": 4},
    "at a much later timestep": {"start": 8},
}


@every_method
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("before", BEFORE)
def test_the_next_loop_is_as_on_a_fresh_model(before: str, after: str, method: Method) -> None:
    fresh, used = tiny_dit(), tiny_dit()
    alone_handle = relcache.enable(fresh, method)
    alone = last(loop(fresh, **AFTER[after]))
    handle = relcache.enable(used, method)
    last(loop(used, **BEFORE[before]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = last(loop(used, **AFTER[after]))
    if not told:
        assert torch.equal(got, alone)
        assert handle.full_steps == alone_handle.full_steps
    else:  # nothing told the loops apart for certain
        assert torch.equal(got, alone) or torch.equal(got, last(loop(tiny_dit(), **AFTER[after])))


@every_method
@pytest.mark.parametrize("begins_at", [2, 4, 8])
def test_the_next_loop_begins_where_the_one_before_broke_off(begins_at: int, method: Method) -> None:
    """On one table of timesteps, with the same prompt: only the sample tells."""
    fresh, used = tiny_dit(), tiny_dit()
    table = list(timesteps_for(STEPS).float())
    fresh_handle = relcache.enable(fresh, method)
    alone = last(loop(fresh, timesteps=table, start=begins_at))
    handle = relcache.enable(used, method)
    last(loop(used, seed=5, timesteps=table, stop=begins_at))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(last(loop(used, timesteps=table, start=begins_at)), alone)
    assert handle.full_steps == fresh_handle.full_steps


@pytest.mark.parametrize("on_cpu", [False, True])
def test_halves_of_two_loops_on_one_table(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that was left in the middle of a table may go on after another one: then the samples are compared."""
    if not on_cpu:
        monkeypatch.setattr("relcache.tracker.waits", lambda values: True)
    model, plain = tiny_dit(), tiny_dit()
    table = list(timesteps_for(STEPS).float())
    handle = relcache.enable(model, TaylorSeer(1, 4))
    loops = [loop(model, seed=seed, timesteps=table) for seed in range(2)]
    firsts = [[next(each) for _ in range(STEPS // 2)] for each in loops]
    assert len(firsts) == 2

    def compare(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if handle.report().steps <= 2:
            assert torch.equal(output.sample, plain(*args, **kwargs).sample)

    model.register_forward_hook(compare, with_kwargs=True)
    with pytest.warns(UserWarning, match="another noise"):
        last(loops[0])
    assert handle.report().steps == STEPS // 2


@every_method
def test_loops_of_one_step_are_never_built_upon(method: Method) -> None:
    """The same timestep and conditioning, other noise: nothing tells them apart, so all is computed, and said."""
    model, plain = tiny_dit(), tiny_dit()
    relcache.enable(model, method)
    with pytest.warns(UserWarning, match="called again at the same timestep"):
        outs = [last(loop(model, seed=seed, stop=1)) for seed in range(4)]
    for seed, out in enumerate(outs):
        assert torch.equal(out, last(loop(plain, seed=seed, stop=1)))
    with relcache.enable(tiny_dit(), method) as handle:
        alone = handle.full_steps
    assert alone == []


@every_method
@pytest.mark.parametrize(
    "table", [[900, 900, 700, 700, 500, 500, 300, 300], [900, 700, 700, 500, 500, 300, 300, 100]], ids=str
)
def test_repeated_timesteps_give_the_same_full_steps_each_time(table: list[int], method: Method) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, method)
    timesteps = list(torch.tensor(table, dtype=torch.float32))
    seen = [(last(loop(model, timesteps=timesteps)), handle.full_steps, handle.report().steps) for _ in range(3)]
    assert seen[0][2] == len(table)
    for picture, full_steps, steps in seen[1:]:
        assert torch.equal(picture, seen[0][0])
        assert (full_steps, steps) == seen[0][1:]


def test_tables_walked_either_way_after_one_another() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, TaylorSeer(1, 4))
    falling = timesteps_for(STEPS).float()
    rising = falling.flip(0).contiguous()
    ways = {"falling": list(falling), "rising": [rising[place] for place in reversed(range(STEPS))]}
    for way in ("falling", "rising", "falling", "falling", "rising", "rising", "falling"):
        last(loop(model, timesteps=ways[way]))
        assert (handle.report().steps, handle.full_steps) == (STEPS, [0, 1, 5, 9])


@pytest.mark.parametrize("given", [6, 12])
def test_a_number_of_steps_that_does_not_match(given: int) -> None:
    handle = relcache.enable(tiny := tiny_dit(), FORA(4), num_inference_steps=given)
    with pytest.warns(UserWarning, match="after the number of steps that was given as num_inference_steps"):
        last(loop(tiny, steps=20))
    assert (handle.report().steps, handle.full_steps) == (20, [0, 1, 5, 9, 13, 17])


def test_a_scheduler_given_beside_a_bare_transformer() -> None:
    """It tells where a request begins and how long it is, also where it evaluates twice at one timestep."""
    pipe, _ = stable_diffusion_3()
    model, scheduler = pipe.transformer, diffusers.FlowMatchHeunDiscreteScheduler()
    text = torch.randn(1, 5, model.config.joint_attention_dim)
    pooled = torch.randn(1, model.config.pooled_projection_dim)
    handle = relcache.enable(model, TaylorSeer(1, 4), scheduler=scheduler, free_at_end=True)

    def sample(seed: int) -> Tensor:
        scheduler.set_timesteps(6)
        size = model.config.sample_size
        x = torch.randn(1, model.config.in_channels, size, size, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for t in scheduler.timesteps:
                v = model(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t.reshape(1).clone())[0]
                x = scheduler.step(v, t, x, return_dict=False)[0]
        return x

    first = sample(0)
    assert (handle.report().steps, handle.full_steps) == (11, [0, 1, 5, 9])
    sample(1)
    assert torch.equal(sample(0), first)
    assert not handle.report().notes


# Calls that look alike


@every_method
def test_windows_whose_order_changes(method: Method) -> None:
    """Two windows of one clip, told apart by nothing but their samples, first the one and then the other."""
    pipe, call = stable_diffusion_3()

    def windows(pipe: Any, orders: list[tuple[int, int]]) -> list[Tensor]:
        plain, outs, step = pipe.transformer, [], 0
        inside = False

        def around(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal inside, step
            if inside:
                return
            inside = True
            for window in orders[step]:
                hidden = kwargs["hidden_states"].flip(-1) * 0.8 if window else kwargs["hidden_states"].roll(3, -2)
                outs.append((window, plain(*args, **{**kwargs, "hidden_states": hidden})[0]))
            inside, step = False, step + 1

        hook = plain.register_forward_hook(around, with_kwargs=True)
        run(pipe, {**call, "guidance_scale": 1.0}, steps=len(orders))
        hook.remove()
        return [out for _, out in sorted(outs, key=lambda one: one[0])]

    fixed = [(0, 1)] * 24
    changing = [(0, 1), (1, 0), (1, 0), (0, 1), (1, 0), (0, 1)] * 4
    results = []
    for orders in (fixed, changing):
        with relcache.enable(pipe, method) as handle:
            results.append(windows(pipe, orders))
            assert len(handle.report().branches) == 3
            assert not handle.report().notes
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_equal_prompts_are_not_told_apart() -> None:
    """Guidance between two equal prompts is none, and a forecast must not be amplified by it."""
    pipe, call = flux(diffusers.FluxImg2ImgPipeline)
    options = {**options_of(pipe), "strength": 1.0, "true_cfg_scale": 4.0, "negative_prompt": call["prompt"]}
    full = run(pipe, call, **options)
    handle = relcache.enable(pipe, FORA(4))
    with pytest.warns(UserWarning, match="nothing tells the two calls apart"):
        cached = run(pipe, call, **options)
    assert torch.equal(cached, full)
    assert handle.report().nfc == STEPS


def test_a_controlnet_in_one_of_two_calls() -> None:
    """With and without its residuals, at one timestep and on one sample: two branches."""
    model = flux_transformer()
    generator = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 5, 16, generator=generator), torch.randn(1, 16, generator=generator)
    x = torch.randn(1, 6, 16, generator=generator)
    residuals = [torch.randn(1, 6, 32, generator=generator) for _ in range(2)]
    handle = relcache.enable(model, TaylorSeer(1, 3))
    with torch.no_grad():
        for step, t in enumerate(torch.linspace(1, 0.1, STEPS)):
            for control in (None, [residual * (1 - step / 20) for residual in residuals]):
                out = model(
                    x, timestep=t[None].clone(), encoder_hidden_states=text, pooled_projections=pooled,
                    guidance=torch.ones(1), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
                    controlnet_block_samples=control,
                )[0]  # fmt: skip
            x = x - 0.05 * out
    assert (handle.report().steps, len(handle.report().branches)) == (STEPS, 2)
    assert not handle.report().notes


@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_a_controlnet_that_ends_is_noticed(granularity: Any) -> None:
    """After its last step its residuals are zeros: what was cached with it is not used any longer."""
    base, call = flux()
    torch.manual_seed(0)
    control = diffusers.FluxControlNetModel.from_transformer(
        base.transformer, attention_head_dim=16, num_attention_heads=2, num_layers=1, num_single_layers=1
    )
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    pipe = diffusers.FluxControlNetPipeline(controlnet=control.eval(), **base.components)
    options = {"control_image": torch.rand(1, 3, 16, 24), "control_guidance_end": 0.5}
    with relcache.enable(pipe, FORA(5), granularity=granularity) as handle:
        run(pipe, call, steps=20, **options)
        assert handle.full_steps == [0, 1, 6, 10, 11, 16]


def test_a_prompt_that_changes_under_one_context() -> None:
    """The name of a branch stands; what it is conditioned on does not, and features of the old prompt are not used."""
    model, plain = tiny_dit(kind=DiTWithContext), tiny_dit(kind=DiTWithContext)
    relcache.enable(model, FORA(8, warmup=1))
    sample = noise_for([0, 1])
    outs: dict[str, list[Tensor]] = {"cached": [], "plain": []}
    with torch.no_grad():
        for step, time in enumerate(timesteps_for(STEPS).float()):
            for name, transformer in (("cached", model), ("plain", plain)):
                labels = torch.full((2,), 3 if step < 4 else 7)
                with transformer.cache_context("cond"):
                    outs[name].append(transformer(sample, timestep=time.expand(2), class_labels=labels).sample)
    equal = [torch.equal(a, b) for a, b in zip(outs["cached"], outs["plain"], strict=True)]
    assert equal == [True, False, False, False, True, False, False, False, True, False]


# Requests that are legal


@pytest.mark.parametrize("method", [FORA(4), TaylorSeer(2, 4), RFC(), RFE(1, 3)], ids=lambda method: method.name)
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


# Several at a time


@every_method
def test_pipelines_in_threads(method: Method) -> None:
    """Each with its scheduler, on one transformer: equal to one after the other, whoever comes first."""
    first, call = flux()
    pipes = [first, with_scheduler(first), with_scheduler(first)]
    prompts = [
        pipe.encode_prompt(f"an owl {place}", None, max_sequence_length=24)[:2] for place, pipe in enumerate(pipes)
    ]
    call = {key: value for key, value in call.items() if key != "prompt"}

    def work(place: int) -> None:
        embeds, pooled = prompts[place]
        torch.set_grad_enabled(False)
        outs[place] = run(pipes[place], call, seed=place, prompt_embeds=embeds, pooled_prompt_embeds=pooled)

    with relcache.enable(first, method):
        outs: dict[int, Tensor] = {}
        for place in range(3):
            work(place)
        torch.set_grad_enabled(True)
        serial = dict(outs)
        for _ in range(3):
            outs.clear()
            threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(outs) == [0, 1, 2]
            assert all(torch.equal(outs[place], serial[place]) for place in range(3))


@every_method
def test_bare_loops_in_threads(method: Method) -> None:
    model, barrier = tiny_dit(), threading.Barrier(2)
    alone = {}
    for seed in range(2):
        with relcache.enable(model, method):
            alone[seed] = last(loop(model, seed=seed))
    outs = {}

    def work(seed: int) -> None:
        samples = []
        for sample in loop(model, seed=seed):
            samples.append(sample)
            barrier.wait(20)
        outs[seed] = samples[-1]

    with relcache.enable(model, method):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(outs[seed], alone[seed]) for seed in range(2))


@every_method
@pytest.mark.parametrize("guided", [False, True])
def test_steps_of_one_loop_in_several_threads(guided: bool, method: Method) -> None:
    """A server runs each step of a generator in whichever thread is free; two loops at a time are not mixed."""

    def loop(model: Any, seed: int) -> Iterator[Tensor]:
        sample = noise_for([10 * seed, 10 * seed + 1])
        for time in timesteps_for(STEPS).tolist():
            for label in (3, 1000) if guided else (3,):
                call = {"timestep": torch.full((2,), float(time)), "class_labels": torch.full((2,), label)}
                with torch.no_grad():
                    out = model(sample, **call).sample
            sample = sample + 0.1 * out / out.norm() * sample.norm()
            yield sample

    model = tiny_dit()
    alone = {}
    for seed in range(2):
        with relcache.enable(model, method):
            alone[seed] = last(loop(model, seed=seed))
    samples: dict[int, Tensor] = {}

    def step(each: Iterator[Tensor], seed: int) -> None:
        samples[seed] = next(each)

    relcache.enable(model, method)
    for seeds in ((0,), (1,), (0, 1)):
        loops = {seed: loop(model, seed=seed) for seed in seeds}
        threads = [ThreadPoolExecutor(1) for _ in range(3)]
        for turn in range(STEPS):
            for seed, each in loops.items():
                threads[(turn + seed) % 3].submit(step, each, seed).result()
        for pool in threads:
            pool.shutdown()
        assert all(torch.equal(samples[seed], alone[seed]) for seed in seeds)


@pytest.mark.parametrize("number", [9, 12])
def test_many_loops_at_a_time(number: int) -> None:
    model, method = tiny_dit(), TaylorSeer(1, 4)
    with relcache.enable(model, method) as handle:
        alone = [(last(loop(model, seed=seed)), handle.reset())[0] for seed in range(number)]
    handle = relcache.enable(model, method)
    names = [handle.request() for _ in range(number)]
    loops = [loop(model, seed=seed) for seed in range(number)]
    samples: dict[int, Tensor] = {}
    for _ in range(STEPS):
        for seed, (name, each) in enumerate(zip(names, loops, strict=True)):
            with name:
                samples[seed] = next(each)
    assert all(torch.equal(samples[seed], alone[seed]) for seed in range(number))


def test_a_pipeline_within_a_loop_by_hand() -> None:
    """The loop goes on as if nothing had been in between."""
    pipe, call = flux()
    model, table = pipe.transformer, torch.linspace(1, 0.1, STEPS)
    generator = torch.Generator().manual_seed(0)
    text, pooled, noise = (torch.randn(1, *shape, generator=generator) for shape in ((5, 16), (16,), (6, 16)))

    def by_hand(between: bool) -> Tensor:
        x = noise
        for step, t in enumerate(table):
            with torch.no_grad():
                x = x - 0.05 * model(
                    x, timestep=t[None].clone(), encoder_hidden_states=text, pooled_projections=pooled,
                    guidance=torch.ones(1), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
                )[0]  # fmt: skip
            if between and step == 4:
                run(pipe, call, steps=4)
        return x

    handle = relcache.enable(pipe, TaylorSeer(1, 4))
    alone = by_hand(between=False)
    assert torch.equal(by_hand(between=True), alone)
    assert (handle.report().steps, handle.full_steps) == (STEPS, [0, 1, 5, 9])


def test_an_exception_that_is_kept_keeps_no_features() -> None:
    """A notebook keeps the last traceback, and with it the frame of the pipeline's call."""
    pipe, call = flux()
    handle = relcache.enable(pipe, TaylorSeer(1, 4))
    kept = []
    for seed in range(4):
        try:
            run(pipe, call, seed=seed, callback_on_step_end=stop_at(3))
        except Stop as error:
            kept.append(error)
    run(pipe, call)
    assert len(kept) == 4
    assert len(list(handle._session.requests.runs)) == 1


@every_method
def test_named_loops_that_take_turns(method: Method) -> None:
    """The same prompt, one a few steps ahead of the other: each is as alone."""
    model = tiny_dit()
    alone = {}
    for seed in range(2):
        with relcache.enable(model, method) as handle:
            alone[seed] = last(loop(model, seed=seed)), handle.full_steps
    with relcache.enable(model, method) as handle:
        names = [handle.request(), handle.request()]
        loops = [loop(model, seed=0), loop(model, seed=1)]
        samples: dict[int, Tensor] = {}
        for turn in [0, 0, 0, *([1, 0] * (STEPS - 3)), 1, 1, 1]:
            with names[turn]:
                samples[turn] = next(loops[turn])
                if handle.report().steps == STEPS:
                    assert handle.full_steps == alone[turn][1]
        assert all(torch.equal(samples[seed], alone[seed][0]) for seed in range(2))


@every_method
@pytest.mark.parametrize("lead", [0, 1, 3])
@pytest.mark.parametrize("labels", [(3, 3), (3, 7)], ids=["one prompt", "two prompts"])
def test_loops_without_names_that_take_turns_are_never_mixed(
    method: Method, lead: int, labels: tuple[int, int]
) -> None:
    """Each as alone, or as full compute with a warning."""
    model, plain = tiny_dit(), tiny_dit()
    alone = []
    for seed in range(2):
        with relcache.enable(model, method):
            alone.append(last(loop(model, seed=seed, label=labels[seed])))
    handle = relcache.enable(model, method)
    loops = [loop(model, seed=seed, label=labels[seed]) for seed in range(2)]
    samples: dict[int, list[Tensor]] = {0: [], 1: []}
    is_full: dict[int, list[bool]] = {0: [], 1: []}

    def compare(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        is_full[turn].append(torch.equal(output.sample, plain(*args, **kwargs).sample))

    model.register_forward_hook(compare, with_kwargs=True)
    turns = [*([0] * lead), *([1, 0] * (STEPS - lead)), *([1] * lead)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for turn in turns:
            samples[turn].append(next(loops[turn]))
    for seed in range(2):
        as_alone = torch.equal(samples[seed][-1], alone[seed])
        while_both_ran = is_full[seed][lead if seed == 0 else 0 : STEPS if seed == 0 else STEPS - lead]
        assert as_alone or (told and all(while_both_ran)), (handle.full_steps, is_full)


def test_a_call_that_was_interrupted_does_not_block_another_thread() -> None:
    model = tiny_dit()
    relcache.enable(model, FORA(4))

    def interrupt(*call: Any) -> None:
        raise KeyboardInterrupt

    hook = model.transformer_blocks[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        last(loop(model))
    hook.remove()
    outs: list[Tensor] = []
    thread = threading.Thread(target=lambda: outs.append(last(loop(model))))
    thread.start()
    thread.join(20)
    assert len(outs) == 1


# The record


def test_notes_are_those_of_the_last_request() -> None:
    pipe, call = stable_diffusion_3()

    def blend(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "prompt_embeds": tensors["prompt_embeds"] * 1.01}

    handle = relcache.enable(pipe, TaylorSeer(1, 4))
    with pytest.warns(UserWarning, match="conditioning changed"):
        run(pipe, call, steps=14, callback_on_step_end=blend,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])  # fmt: skip
    assert handle.report().notes
    run(pipe, call)
    assert (handle.full_steps, handle.report().notes) == ([0, 1, 5, 9], [])


def test_a_reset_is_of_this_thread() -> None:
    """What another thread samples goes on."""
    model, method = tiny_dit(), TaylorSeer(1, 4)
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
