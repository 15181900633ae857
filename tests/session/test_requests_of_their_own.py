"""Requests with methods of their own on one handle: each is that of a fresh pipeline with this method."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from requesting import run
from small_pipelines import flux, wan
from tiny import noise_for, tiny_dit
from torch import Tensor

import relcache

METHODS: list[Any] = [
    relcache.auto(full_steps=4),
    relcache.auto(full_steps=6, corrector=None, order=1),
    relcache.TaylorSeer(2, interval=4),
    relcache.RFC(1, threshold=0.3),
    relcache.RCS(2, threshold=0.3),
    relcache.FORA(3),
]
GRANULARITY: Any = "stack"


def fresh(build: Any, method: Any, seed: int = 0) -> tuple[Tensor, list[int]]:
    pipe, call = build()
    with relcache.enable(pipe, method, granularity=GRANULARITY) as handle:
        return run(pipe, call, seed), handle.full_steps


@pytest.mark.parametrize("enabled", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("build", [flux, wan])
def test_requests_one_after_another(build: Any, enabled: Any) -> None:
    pipe, call = build()
    with relcache.enable(pipe, enabled, granularity=GRANULARITY) as handle:
        for method in METHODS:
            with handle.request(method):
                picture = run(pipe, call)
            expected, full_steps = fresh(build, method)
            assert torch.equal(picture, expected)
            assert handle.full_steps == full_steps
            assert handle.report().method == relcache.method_to_text(replace(method, granularity=GRANULARITY))
        assert torch.equal(run(pipe, call), fresh(build, enabled)[0])


def test_a_budget_of_its_own() -> None:
    pipe, call = flux()
    handle = relcache.enable(pipe, full_steps=6)
    with handle.request(full_steps=3):
        draft = run(pipe, call)
    assert len(handle.full_steps) == 3
    run(pipe, call)
    assert len(handle.full_steps) == 6
    handle.disable()
    relcache.enable(pipe, full_steps=3)
    assert torch.equal(run(pipe, call), draft)


def test_two_at_a_time() -> None:
    """Two threads, two pipelines, one transformer, two methods; both are in the middle of their requests."""
    (pipe, call), built = flux(), flux()
    other = type(pipe)(**{**pipe.components, "scheduler": built[0].scheduler})
    handle = relcache.enable(pipe, METHODS[0], granularity=GRANULARITY)
    barrier, pictures = threading.Barrier(2, timeout=60), {}

    def wait(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        barrier.wait()
        return tensors

    def make(index: int, own: Any, method: Any) -> None:
        with handle.request(method):
            pictures[index] = run(own, call, index, callback_on_step_end=wait)

    chosen = [(pipe, METHODS[2]), (other, METHODS[3])]
    threads = [threading.Thread(target=make, args=(index, *pair)) for index, pair in enumerate(chosen)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (_, method) in enumerate(chosen):
        assert torch.equal(pictures[index], fresh(flux, method, index)[0])


def test_two_loops_that_take_turns() -> None:
    """Hand-written loops step by step in turn, each with its method."""
    methods, model = [METHODS[2], METHODS[3]], tiny_dit()
    handle = relcache.enable(model, METHODS[5])
    contexts = [handle.request(method) for method in methods]
    samples = [noise_for([seed]) for seed in range(2)]
    for time in torch.arange(900, 0, -100):
        for index, context in enumerate(contexts):
            samples[index] = moved(model, samples[index], time, index, context)
    for index, method in enumerate(methods):
        alone, sample = tiny_dit(), noise_for([index])
        relcache.enable(alone, method)
        for time in torch.arange(900, 0, -100):
            sample = moved(alone, sample, time, index)
        assert torch.equal(samples[index], sample)


def moved(model: Any, sample: Tensor, time: Tensor, label: int, context: Any = None) -> Tensor:
    with torch.no_grad():
        call = {"timestep": time[None].clone(), "class_labels": torch.tensor([label])}
        if context is None:
            return sample - 0.05 * model(sample, **call).sample[:, :4]
        with context:
            return sample - 0.05 * model(sample, **call).sample[:, :4]


def test_compiled_code_serves_several_methods() -> None:
    methods = [METHODS[2], METHODS[4]]
    model, plain = tiny_dit(), tiny_dit()
    handle, other = relcache.enable(model, METHODS[5]), relcache.enable(plain, METHODS[5])
    model.compile(backend="eager")
    for method in (*methods, methods[0]):
        pictures = []
        for own, own_handle in ((model, handle), (plain, other)):
            sample = noise_for([1])
            context = own_handle.request(method)
            for time in torch.arange(900, 0, -100):
                sample = moved(own, sample, time, 1, context)
            pictures.append(sample)
        torch.testing.assert_close(*pictures, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_had_beside_the_handles_own() -> None:
    handle = relcache.enable(flux()[0], full_steps=4, memory_limit="1GB")
    with pytest.raises(ValueError, match="a memory limit is for the enabled method"):
        handle.request(full_steps=3)
    handle = relcache.enable(flux()[0], full_steps=4)
    with pytest.raises(ValueError, match="a budget is either full_steps or speedup"):
        handle.request(full_steps=3, speedup=2)
    with pytest.raises(ValueError, match="unknown method"):
        handle.request("rfd:order=2")
    with pytest.raises(ValueError, match="the preset is for"):
        handle.request("preset:name=small-video-8")


def test_requests_that_a_server_begins() -> None:
    """Each is a request for certain, with the number of steps that was passed; other handles do not see it."""
    model, other = tiny_dit(), tiny_dit()
    handle = relcache.enable(model, full_steps=4)
    for steps in (10, 20, 10):
        handle.begin(steps)
        sample = noise_for([steps])
        for time in torch.linspace(900, 0, steps):
            sample = moved(model, sample, time, 1)
        assert len(handle.full_steps) == 4
    handle.disable()
    relcache.enable(other, METHODS[2])
    plain, samples = tiny_dit(), [noise_for([1])] * 2
    relcache.enable(plain, METHODS[2])
    with relcache.enable(model, full_steps=4) as begun:
        begun.begin(10)
        for time in torch.linspace(900, 0, 10):
            samples = [moved(own, sample, time, 1) for own, sample in zip((other, plain), samples, strict=True)]
    assert torch.equal(*samples)


def test_a_context_is_of_one_handle() -> None:
    (pipe, call), (other, _) = flux(), flux()
    handle, second = relcache.enable(pipe, METHODS[0]), relcache.enable(other, METHODS[2])
    with handle.request(METHODS[5]):
        run(other, call)
        assert second.report().method == second.method
        run(pipe, call)
        assert handle.report().forecaster == str(METHODS[5].forecaster)


def test_a_disabled_handle_gives_no_context() -> None:
    handle = relcache.enable(tiny_dit(), METHODS[2])
    handle.disable()
    with pytest.raises(RuntimeError, match="this handle was disabled"):
        handle.request(METHODS[5])
