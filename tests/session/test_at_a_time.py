"""Several requests at a time on one transformer: in threads, in turns, one within another."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from requesting import STEPS, Stop, every_method, last, loop, run, stop_at, with_scheduler
from small_pipelines import (
    flux,
)
from tiny import noise_for, timesteps_for, tiny_dit
from torch import Tensor

import relcache
from relcache import FORA, Method, TaylorSeer


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
    model, method = tiny_dit(), TaylorSeer(1, interval=4)
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

    handle = relcache.enable(pipe, TaylorSeer(1, interval=4))
    alone = by_hand(between=False)
    assert torch.equal(by_hand(between=True), alone)
    assert (handle.report().steps, handle.full_steps) == (STEPS, [0, 1, 5, 9])


def test_an_exception_that_is_kept_keeps_no_features() -> None:
    """A notebook keeps the last traceback, and with it the frame of the pipeline's call."""
    pipe, call = flux()
    handle = relcache.enable(pipe, TaylorSeer(1, interval=4))
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
