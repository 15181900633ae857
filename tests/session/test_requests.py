"""A request starts clean by itself, whatever became of the one before, and a step costs no needless waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from tiny import (
    NULL_CLASS,
    BrokenOff,
    DiTWithContext,
    ddim,
    noise_for,
    run_guided,
    run_loop,
    run_pipeline,
    timesteps_for,
    tiny_dit,
    tiny_pipeline,
    trajectory,
)

import relcache
from relcache import FORA, RFC, ErrorBudget, Method, Report, Taylor, TaylorSeer

STEPS = 12
METHODS = [TaylorSeer(2, interval=4), RFC(2, threshold=0.6)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def break_inside(model: DiTTransformer2DModel, error: type[BaseException], call: int, run: Callable[[], Any]) -> None:
    """Run until `error` is raised inside a feed-forward layer at its `call`-th computation."""
    seen = Counter()

    def hook(module: torch.nn.Module, inputs: Any) -> None:
        seen["calls"] += 1
        if seen["calls"] == call:
            raise error("broken off inside a module")

    handle = model.transformer_blocks[1].ff.net[0].register_forward_pre_hook(hook)
    try:
        with pytest.raises(error):
            run()
    finally:
        handle.remove()


def broken(error: type[BaseException], run: Callable[[], Any]) -> None:
    with pytest.raises(error):
        run()


LABELS = torch.tensor([3, 5])
Accident = Callable[[DiTTransformer2DModel], None]
ACCIDENTS: dict[str, Accident] = {
    "normal end": lambda m: run_loop(m, steps=STEPS, seeds=[7, 8]),
    "normal end, same tensors": lambda m: run_loop(m, LABELS, STEPS),
    "error inside, first step": lambda m: break_inside(m, BrokenOff, 1, lambda: run_loop(m, steps=STEPS)),
    "error inside, second step": lambda m: break_inside(m, BrokenOff, 2, lambda: run_loop(m, steps=STEPS)),
    "error inside, later": lambda m: break_inside(m, BrokenOff, 3, lambda: run_loop(m, steps=STEPS)),
    "interrupt inside": lambda m: break_inside(m, KeyboardInterrupt, 2, lambda: run_loop(m, steps=STEPS)),
    "error between calls": lambda m: broken(BrokenOff, lambda: run_loop(m, steps=STEPS, break_at=5)),
    "error after the first step": lambda m: broken(BrokenOff, lambda: run_loop(m, steps=STEPS, break_at=1)),
    "error after the first step, same tensors": lambda m: broken(
        BrokenOff, lambda: run_loop(m, LABELS, steps=STEPS, break_at=1)
    ),
    "error before the last step": lambda m: broken(BrokenOff, lambda: run_loop(m, steps=STEPS, break_at=STEPS - 1)),
    "interrupt between calls": lambda m: broken(
        KeyboardInterrupt, lambda: run_loop(m, steps=STEPS, break_at=5, error=KeyboardInterrupt)
    ),
    "error between branches, first step": lambda m: broken(BrokenOff, lambda: run_guided(m, break_after_cond_at=0)),
    "error between branches, later": lambda m: broken(BrokenOff, lambda: run_guided(m, break_after_cond_at=4)),
    "two branches": lambda m: run_guided(m, STEPS),
    "fewer steps": lambda m: run_loop(m, steps=6),
    "more steps": lambda m: run_loop(m, steps=20),
    "more steps, broken off": lambda m: broken(BrokenOff, lambda: run_loop(m, steps=20, break_at=5)),
    "more steps, broken off after the first step": lambda m: broken(
        BrokenOff, lambda: run_loop(m, steps=20, break_at=1)
    ),
    "fewer steps, broken off after the first step": lambda m: broken(
        BrokenOff, lambda: run_loop(m, steps=6, break_at=1)
    ),
    "other size": lambda m: run_loop(m, steps=STEPS, size=16),
    "other size, broken off": lambda m: broken(BrokenOff, lambda: run_loop(m, steps=STEPS, size=16, break_at=5)),
    "other size, broken off after the first step": lambda m: broken(
        BrokenOff, lambda: run_loop(m, steps=STEPS, size=16, break_at=1)
    ),
    "other batch": lambda m: run_loop(m, torch.tensor([1, 2, 4]), STEPS),
    "other batch, broken off": lambda m: broken(
        BrokenOff, lambda: run_loop(m, torch.tensor([1, 2, 4]), STEPS, break_at=5)
    ),
    "other batch, broken off after the first step": lambda m: broken(
        BrokenOff, lambda: run_loop(m, torch.tensor([1, 2, 4]), STEPS, break_at=1)
    ),
    "three accidents in a row": lambda m: [
        broken(BrokenOff, partial(run_loop, m, steps=STEPS, break_at=step)) for step in (5, 1, 2)
    ],
}


@cache
def fresh_loop(method: Method) -> tuple[torch.Tensor, Report]:
    """Picture and report of a model that has run nothing before."""
    model = tiny_dit()
    handle = relcache.enable(model, method)
    return run_loop(model, LABELS, STEPS), handle.report()


@every_method
@pytest.mark.parametrize("accident", ACCIDENTS.values(), ids=ACCIDENTS)
def test_a_loop_starts_clean_after(accident: Accident, method: Method) -> None:
    """Same picture to the last bit, and same record, as on a model that has run nothing before."""
    used = tiny_dit()
    handle = relcache.enable(used, method)
    accident(used)
    picture = run_loop(used, LABELS, STEPS)

    expected, expected_report = fresh_loop(method)
    assert torch.equal(picture, expected)
    report = handle.report()
    assert report.full_steps == expected_report.full_steps
    assert report.signal == expected_report.signal
    assert report.steps == STEPS
    assert report.batch == 2
    assert report.cache_bytes == expected_report.cache_bytes
    assert report.flops == expected_report.flops
    assert report.fallbacks == expected_report.fallbacks
    assert len(report.branches) == 1


@every_method
@pytest.mark.parametrize("context", [False, True], ids=["conditioning", "cache_context"])
@pytest.mark.parametrize("break_at", [0, 1, 5, 11])
def test_a_guided_loop_starts_clean(method: Method, context: bool, break_at: int) -> None:
    fresh, used = tiny_dit(kind=DiTWithContext), tiny_dit(kind=DiTWithContext)
    relcache.enable(fresh, method)
    handle = relcache.enable(used, method)
    broken(BrokenOff, lambda: run_guided(used, STEPS, context=context, break_after_cond_at=break_at))
    assert torch.equal(run_guided(used, STEPS, context=context), run_guided(fresh, STEPS, context=context))
    assert handle.report().steps == STEPS
    assert len(handle.report().branches) == 2


def break_scheduler(pipeline: DiTPipeline, error: type[BaseException], step: int, run: Callable[[], Any]) -> None:
    """Run until `error` is raised in the pipeline, between two calls of the transformer."""
    original, seen = pipeline.scheduler.step, Counter()

    def stumble(*args: Any, **kwargs: Any) -> Any:
        seen["calls"] += 1
        if seen["calls"] == step:
            raise error("broken off in the scheduler")
        return original(*args, **kwargs)

    pipeline.scheduler.step = stumble
    try:
        with pytest.raises(error):
            run()
    finally:
        del pipeline.scheduler.step


PIPELINE_ACCIDENTS: dict[str, Callable[[DiTPipeline], Any]] = {
    "normal end": lambda p: run_pipeline(p, [3, 5], STEPS),
    "error inside": lambda p: break_inside(p.transformer, BrokenOff, 2, lambda: run_pipeline(p, [3, 5], STEPS)),
    "interrupt inside": lambda p: break_inside(
        p.transformer, KeyboardInterrupt, 2, lambda: run_pipeline(p, [3, 5], STEPS)
    ),
    "error between calls": lambda p: break_scheduler(p, BrokenOff, 6, lambda: run_pipeline(p, [3, 5], STEPS)),
    "error after the first call": lambda p: break_scheduler(p, BrokenOff, 1, lambda: run_pipeline(p, [3, 5], STEPS)),
    "interrupt between calls": lambda p: break_scheduler(
        p, KeyboardInterrupt, 3, lambda: run_pipeline(p, [3, 5], STEPS)
    ),
    "other number of steps": lambda p: run_pipeline(p, [3, 5], 20),
    "more steps, broken off early": lambda p: break_scheduler(p, BrokenOff, 1, lambda: run_pipeline(p, [3, 5], 20)),
    "other batch": lambda p: run_pipeline(p, [3, 5, 7], STEPS),
    "other batch, broken off": lambda p: break_scheduler(p, BrokenOff, 1, lambda: run_pipeline(p, [3, 5, 7], STEPS)),
    "without guidance": lambda p: run_pipeline(p, [3, 5], STEPS, guidance=1.0),
}


@cache
def fresh_pipeline(method: Method) -> tuple[torch.Tensor, Report]:
    """Latents and report of a pipeline that has run nothing before."""
    pipeline = tiny_pipeline()
    handle = relcache.enable(pipeline, method)
    return run_pipeline(pipeline, [3, 5], STEPS), handle.report()


@every_method
@pytest.mark.parametrize("accident", PIPELINE_ACCIDENTS.values(), ids=PIPELINE_ACCIDENTS)
def test_a_pipeline_starts_clean_after(accident: Callable[[DiTPipeline], Any], method: Method) -> None:
    used = tiny_pipeline()
    handle = relcache.enable(used, method)
    accident(used)
    expected, expected_report = fresh_pipeline(method)
    assert torch.equal(run_pipeline(used, [3, 5], STEPS), expected)
    assert handle.report() == expected_report


def test_one_step_after_another(model: DiTTransformer2DModel) -> None:
    """Requests of a single step: each is a request of its own."""
    handle = relcache.enable(model, FORA(4, warmup=1))
    first, second = run_loop(model, steps=1), run_loop(model, steps=1)
    assert torch.equal(first, second)
    assert handle.report().steps == 1


@every_method
def test_going_on_after_an_error_begins_anew(method: Method) -> None:
    """A caller that tries a broken call again finds nothing of the half step in the cache."""

    def run(model: DiTTransformer2DModel, steps: range) -> list[torch.Tensor]:
        samples, timesteps = trajectory(STEPS), timesteps_for(STEPS)
        with torch.no_grad():
            return [model(samples[i], timestep=timesteps[i].expand(2), class_labels=LABELS).sample for i in steps]

    fresh, used = tiny_dit(), tiny_dit()
    relcache.enable(fresh, method)
    handle = relcache.enable(used, method)
    run(used, range(1))
    break_inside(used, BrokenOff, 1, lambda: run(used, range(1, 2)))
    again, expected = run(used, range(1, STEPS)), run(fresh, range(1, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert handle.report().steps == STEPS - 1


def test_reset_begins_a_request(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    run_loop(model, steps=STEPS)
    handle.reset()
    assert handle.report().steps == 0
    run_loop(model, steps=STEPS)
    assert handle.report().steps == STEPS


def loop_over(model: DiTTransformer2DModel, timesteps: list[Any]) -> None:
    with torch.no_grad():
        for sample, timestep in zip(trajectory(len(timesteps)), timesteps, strict=True):
            timestep = timestep if timestep.ndim else timestep.expand(2)
            model(sample, timestep=timestep, class_labels=LABELS)


FORMS_OF_TIME: dict[str, Callable[[], list[torch.Tensor]]] = {
    "views of one tensor": lambda: list(timesteps_for(STEPS)),
    "a new tensor each step": lambda: [torch.tensor([t, t]) for t in timesteps_for(STEPS).tolist()],
    "entries of a table made anew in each step": lambda: [timesteps_for(STEPS)[i] for i in range(STEPS)],
    "fractions": lambda: list(torch.linspace(1, 0.05, STEPS)),
    "half precision": lambda: list(timesteps_for(STEPS).half()),
}


@pytest.mark.parametrize("timesteps", FORMS_OF_TIME.values(), ids=FORMS_OF_TIME)
def test_forms_of_timesteps(timesteps: Callable[[], list[torch.Tensor]], model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    for _ in range(2):
        loop_over(model, timesteps())
        assert handle.report().steps == STEPS
        assert handle.report().full_steps == [0, 1, 5, 9]


def test_one_ascending_tensor_walked_from_its_end(model: DiTTransformer2DModel) -> None:
    """`for i in reversed(range(n)): t = timesteps[i]`: time falls as it should, only memory runs the other way."""
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    rising = timesteps_for(STEPS).flip(0).contiguous()
    loop_over(model, [rising[i] for i in reversed(range(STEPS))])
    assert handle.report().steps == STEPS
    assert handle.report().full_steps == [0, 1, 5, 9]


def test_a_timestep_tensor_that_is_overwritten(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    timestep = torch.zeros(2)
    with torch.no_grad():
        for _ in range(2):
            for value, sample in zip(timesteps_for(STEPS).tolist(), trajectory(STEPS), strict=True):
                model(sample, timestep=timestep.fill_(value), class_labels=LABELS)
            assert handle.report().steps == STEPS
            assert handle.report().full_steps == [0, 1, 5, 9]


def test_known_number_of_steps_ends_a_request(model: DiTTransformer2DModel) -> None:
    """Requests of one step at one timestep, told apart because each is known to be over."""
    handle = relcache.enable(model, FORA(2, warmup=1), num_inference_steps=1)
    computed = []
    model.transformer_blocks[0].attn1.to_q.register_forward_hook(lambda *call: computed.append(1))
    loop_over(model, [torch.tensor(500), torch.tensor(500), torch.tensor(500)])
    assert (handle.report().steps, handle.full_steps, len(computed)) == (1, [0], 3)
    assert not handle.report().notes


def test_a_loop_that_begins_in_the_middle_of_another_table(model: DiTTransformer2DModel) -> None:
    """A loop that was broken off, then one that reworks a picture: the second begins clean, further down its table."""
    handle = relcache.enable(model, TaylorSeer(1, interval=3))
    table = timesteps_for(STEPS)
    loop_over(model, [table[step] for step in range(2)])
    other = timesteps_for(STEPS).clone()
    loop_over(model, [other[step] for step in range(5, STEPS)])
    assert handle.report().steps == STEPS - 5
    assert handle.report().full_steps == [0, 1, 4]


class OwnPipeline:
    """What relcache looks at in a pipeline: a transformer, and a scheduler that has timesteps."""

    def __init__(self, transformer: DiTTransformer2DModel, timesteps: torch.Tensor) -> None:
        self.transformer = transformer
        self.scheduler = SimpleNamespace(timesteps=timesteps)

    def __call__(self, timesteps: list[torch.Tensor]) -> None:
        loop_over(self.transformer, timesteps)


@pytest.mark.parametrize("scale", [1, 1000], ids=["as they are", "divided by 1000"])
@pytest.mark.parametrize("start", [0, 4])
def test_a_request_that_begins_midway(start: int, scale: int, model: DiTTransformer2DModel) -> None:
    """Where a picture is only reworked, the first timesteps are left out, and the last steps are still the last."""
    pipeline = OwnPipeline(model, timesteps_for(STEPS).float())
    handle = relcache.enable(pipeline, Method(Taylor(1), ErrorBudget(1e6, full_last=2)))
    for _ in range(2):
        pipeline.scheduler.timesteps = timesteps_for(STEPS).float()
        pipeline(list(pipeline.scheduler.timesteps[start:] / scale))
        assert handle.report().steps == STEPS - start
        assert handle.report().full_steps == [0, 1, STEPS - start - 2, STEPS - start - 1]


def test_offloaded_pipeline_caches_in_every_request() -> None:
    """Offloading puts its own forward on the transformer after each request; caching goes on beneath it."""
    pipeline = tiny_pipeline()
    pipeline.enable_model_cpu_offload(device="cpu")
    handle = relcache.enable(pipeline, FORA(4))
    pictures = []
    for steps in (12, 9):
        pictures.append(run_pipeline(pipeline, [3, 5], steps))
        assert handle.report().steps == steps
        assert handle.report().full_steps == [step for step in (0, 1, 5, 9) if step < steps]
    handle.disable()
    assert not torch.equal(run_pipeline(pipeline, [3, 5], 12), pictures[0])


def test_counting_flops_is_not_a_step(model: DiTTransformer2DModel) -> None:
    """Before, in the middle of and after a request, on the enabled model itself."""
    expected, expected_report = fresh_loop(METHODS[0])
    handle = relcache.enable(model, METHODS[0])
    inputs = {"timestep": torch.zeros(2), "class_labels": LABELS}
    flops = [relcache.count_flops(model, torch.zeros(2, 4, 8, 8), **inputs)]

    def denoise(step: int, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if step == 5:
            flops.append(relcache.count_flops(model, sample, **inputs))
        return model(sample, timestep=timestep.expand(2), class_labels=LABELS).sample

    picture = ddim(denoise, noise_for([0, 1]), STEPS)
    flops.append(relcache.count_flops(model, torch.zeros(2, 4, 8, 8), **inputs))
    assert torch.equal(picture, expected)
    assert handle.report().full_steps == expected_report.full_steps
    assert handle.report().full_flops == STEPS * flops[0]
    assert len(set(flops)) == 1


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("break_at", [1, 2, 3, 4])
def test_a_shorter_loop_after_one_broken_off_early(steps: int, break_at: int) -> None:
    """The second loop's first timestep may lie below the last one of the first."""
    used, fresh = tiny_dit(), tiny_dit()
    relcache.enable(used, TaylorSeer(2, interval=4))
    relcache.enable(fresh, TaylorSeer(2, interval=4))
    broken(BrokenOff, lambda: run_loop(used, LABELS, 50, break_at=break_at))
    assert torch.equal(run_loop(used, LABELS, steps), run_loop(fresh, LABELS, steps))


def test_a_piece_of_a_batch_of_timesteps_is_no_entry_of_a_table(model: DiTTransformer2DModel) -> None:
    """A loop that makes one tensor of timesteps for both branches in each step, and gives each branch its piece."""
    handle = relcache.enable(model, FORA(4))
    labels = {0: torch.tensor([3, 5]), 1: torch.tensor([NULL_CLASS, NULL_CLASS])}
    with torch.no_grad():
        for step, sample in enumerate(trajectory(STEPS)):
            timesteps = torch.full((4,), 900 - step)
            for branch, label in labels.items():
                model(sample, timestep=timesteps[2 * branch : 2 * branch + 2], class_labels=label)
    assert handle.report().steps == STEPS
    assert handle.report().full_steps == [0, 1, 5, 9]
