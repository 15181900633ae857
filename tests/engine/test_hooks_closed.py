"""Hooks around a block see a whole call each, also where the block is only run up to its first module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.group_offloading import apply_group_offloading
from small_pipelines import flux
from test_ecosystem import run
from tiny import run_loop, tiny_dit
from torch import nn

import relcache

CPU = torch.device("cpu")
METHOD = relcache.RFC(1, threshold=0.8)


class Pairs:
    """Calls that have begun and those that have ended, by module; what the last ended with."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.outputs: list[Any] = []

    def accelerate(self, name: str) -> ModelHook:
        pairs = self

        class Counting(ModelHook):
            def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                pairs.begun[name] += 1
                return args, kwargs

            def post_forward(self, module: nn.Module, output: Any) -> Any:
                pairs.ended[name] += 1
                pairs.outputs.append(output)
                return output

        return Counting()

    def diffusers(self, name: str) -> DiffusersHook:
        hook: Any = DiffusersHook()
        inner: Any = self.accelerate(name)
        hook.pre_forward, hook.post_forward = inner.pre_forward, inner.post_forward
        return hook


def with_accelerate(module: nn.Module, name: str, pairs: Pairs) -> None:
    add_hook_to_module(module, pairs.accelerate(name))


def with_diffusers(module: nn.Module, name: str, pairs: Pairs) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(pairs.diffusers(name), "counting")


def with_both(module: nn.Module, name: str, pairs: Pairs) -> None:
    with_accelerate(module, name, pairs)
    with_diffusers(module, f"{name} of diffusers", pairs)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("granularity", ["block", "stack"])
@pytest.mark.parametrize("first", ["hooks", "relcache"])
@pytest.mark.parametrize("hook", [with_accelerate, with_diffusers, with_both])
def test_hooks_see_matched_calls(
    hook: Callable[[nn.Module, str, Pairs], None], first: str, granularity: Any, compiled: bool
) -> None:
    model, expected, pairs = tiny_dit(), tiny_dit(), Pairs()
    for each in (model, expected) if compiled else ():
        each.compile(backend="eager")
    theirs = relcache.enable(expected, METHOD, granularity=granularity)
    picture = run_loop(expected)
    if first == "relcache":
        ours = relcache.enable(model, METHOD, granularity=granularity)
    for name, module in model.named_modules():
        if name in ("", "transformer_blocks.0", "transformer_blocks.0.attn1", "transformer_blocks.0.norm1"):
            hook(module, name, pairs)
    if first == "hooks":
        ours = relcache.enable(model, METHOD, granularity=granularity)
    got = run_loop(model)
    assert torch.allclose(got, picture, rtol=1e-4, atol=1e-5) if compiled else torch.equal(got, picture)
    assert ours.full_steps == theirs.full_steps
    assert 2 < len(ours.full_steps) < 12
    assert pairs.begun == pairs.ended
    assert len(pairs.begun) == (8 if hook is with_both else 4)
    assert pairs.begun["transformer_blocks.0"] >= len(ours.full_steps)
    assert all(output is not None for output in pairs.outputs)
    ours.disable()
    assert torch.allclose(run_loop(model), run_loop(tiny_dit()), rtol=1e-4, atol=1e-5)
    assert pairs.begun == pairs.ended


def test_a_block_of_several_streams_returns_its_form_to_its_hooks() -> None:
    """A double block of FLUX returns two tensors; its hooks get two where it is left half-way, too."""
    expected, built, pairs = flux(), flux(), Pairs()
    with relcache.enable(expected[0], METHOD, granularity="block"):
        picture = run(expected)
    with_accelerate(built[0].transformer.transformer_blocks[0], "block", pairs)
    with relcache.enable(built[0], METHOD, granularity="block") as handle:
        assert torch.equal(run(built), picture)
        assert 2 < len(handle.full_steps) < handle.report().steps
    assert pairs.begun["block"] == pairs.ended["block"] > len(handle.full_steps), "it was left at some steps"
    assert {(type(output), len(output)) for output in pairs.outputs} == {(tuple, 2)}


@pytest.mark.parametrize("granularity", ["block", "stack"])
@pytest.mark.parametrize("first", ["offloaded", "enabled"])
def test_weights_that_were_brought_are_sent_away_again(first: str, granularity: Any) -> None:
    """Under sequential offloading every weight is on the meta device between the steps."""
    expected, built = flux(), flux()
    with relcache.enable(expected[0], METHOD, granularity=granularity) as handle:
        picture, full_steps = run(expected), handle.full_steps
    transformer = built[0].transformer
    if first == "enabled":
        handle = relcache.enable(built[0], METHOD, granularity=granularity)
    accelerate.cpu_offload(transformer, execution_device=CPU, offload_buffers=False)
    if first == "offloaded":
        handle = relcache.enable(built[0], METHOD, granularity=granularity)
    here: list[str] = []

    def after_step(pipe: Any, step: int, timestep: Any, values: Any) -> Any:
        here.extend(name for name, weight in transformer.named_parameters() if not weight.is_meta)
        return values

    assert torch.equal(run(built, callback_on_step_end=after_step), picture)
    assert handle.full_steps == full_steps
    assert here == []


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_groups_are_sent_away_as_often_as_they_are_brought(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.hooks.group_offloading import ModuleGroup

    built, counts = flux(), Counter[str]()
    for name in ("onload_", "offload_"):
        original = getattr(ModuleGroup, name)

        def counted(group: Any, name: str = name, original: Any = original) -> None:
            counts[name] += 1
            original(group)

        monkeypatch.setattr(ModuleGroup, name, counted)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(built[0].transformer, onload_device=CPU, offload_device=CPU, offload_type=kind, **options)
    counts.clear()  # they begin sent away
    with relcache.enable(built[0], METHOD, granularity="block") as handle:
        run(built)
    assert 2 < len(handle.full_steps) < handle.report().steps
    assert counts["onload_"] == counts["offload_"] > 0


def test_an_error_in_a_look_leaves_the_hooks_as_they_were() -> None:
    """The stand-in behind a hook is gone after the call, whatever ends it."""
    model, pairs = tiny_dit(), Pairs()
    block = model.transformer_blocks[0]
    with_both(block, "block", pairs)
    relcache.enable(model, METHOD, granularity="block")
    run_loop(model)
    picture = run_loop(model)
    before = block._old_forward

    def fail(module: nn.Module, args: Any) -> None:
        raise ValueError("in the norm")

    watch = block.norm1.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="in the norm"):
        run_loop(model)
    watch.remove()
    assert block._old_forward == before
    assert not block.attn1._forward_pre_hooks
    assert torch.equal(run_loop(model), picture)
