"""Loops written by hand on a bare transformer: never built upon one another."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import pytest
import torch
from requesting import STEPS, every_method, last, loop
from small_pipelines import (
    stable_diffusion_3,
)
from tiny import timesteps_for, tiny_dit
from torch import Tensor

import relcache
from relcache import FORA, Method, TaylorSeer

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
        monkeypatch.setattr("relcache.session.tracker.waits", lambda values: True)
    model, plain = tiny_dit(), tiny_dit()
    table = list(timesteps_for(STEPS).float())
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
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
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    falling = timesteps_for(STEPS).float()
    rising = falling.flip(0).contiguous()
    ways = {"falling": list(falling), "rising": [rising[place] for place in reversed(range(STEPS))]}
    for way in ("falling", "rising", "falling", "falling", "rising", "rising", "falling"):
        last(loop(model, timesteps=ways[way]))
        assert (handle.report().steps, handle.full_steps) == (STEPS, [0, 1, 5, 9])


@pytest.mark.parametrize("given", [6, 12])
def test_a_number_of_steps_that_does_not_match(given: int) -> None:
    handle = relcache.enable(tiny := tiny_dit(), FORA(4), num_inference_steps=given)
    with pytest.warns(UserWarning, match="the request has more steps than num_inference_steps. Pass"):
        last(loop(tiny, steps=20))
    assert (handle.report().steps, handle.full_steps) == (20, [0, 1, 5, 9, 13, 17])


def test_a_scheduler_given_beside_a_bare_transformer() -> None:
    """It tells where a request begins and how long it is, also where it evaluates twice at one timestep."""
    pipe, _ = stable_diffusion_3()
    model, scheduler = pipe.transformer, diffusers.FlowMatchHeunDiscreteScheduler()
    text = torch.randn(1, 5, model.config.joint_attention_dim)
    pooled = torch.randn(1, model.config.pooled_projection_dim)
    handle = relcache.enable(model, TaylorSeer(1, interval=4), scheduler=scheduler, free_at_end=True)

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
