"""Other code that changes the model before or after `enable`: offloading that comes and goes, wrappers, compilers."""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.group_offloading import apply_group_offloading
from small_pipelines import Built, flux
from test_ecosystem import FULL_STEPS, METHOD, run
from tiny import noise_for, timesteps_for, tiny_dit
from torch import Tensor, nn

import relcache
from relcache.engine.forwards import replacement_of
from relcache.engine.watch import Watch

CPU = torch.device("cpu")
BLOCKS = relcache.RFC(1, threshold=0.5)
CONDITION = {"timestep": torch.ones(2), "class_labels": torch.tensor([1, 2])}
BLOCKS_AT = {"granularity": "block"}


def cached(method: relcache.Method = METHOD, **options: Any) -> tuple[Tensor, relcache.Report]:
    """The picture of a fresh pipeline that no other code has changed, and the report."""
    built = flux()
    with relcache.enable(built[0], method, **options) as handle:
        return run(built), handle.report()


def traces(model: nn.Module) -> list[str]:
    """Modules that still have a replacement of relcache."""
    return [name for name, module in model.named_modules() for value in vars(module).values() if replacement_of(value)]


# Offloading that is switched on, changed or taken off


def nothing(pipe: Any) -> None:
    pass


def sequential(pipe: Any) -> None:
    accelerate.cpu_offload(pipe.transformer, execution_device=CPU, offload_buffers=False)


def leaves(pipe: Any) -> None:
    apply_group_offloading(pipe.transformer, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def blocks(pipe: Any) -> None:
    apply_group_offloading(
        pipe.transformer, onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )


def whole(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def remove(pipe: Any) -> None:
    """All that offloading has put on the model, by the libraries' own functions."""
    pipe.remove_all_hooks()
    remove_hook_from_module(pipe.transformer, recurse=True)
    for module in pipe.transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name in list(registry.hooks) if registry else ():
            registry.remove_hook(name, recurse=False)


WAYS = [nothing, sequential, leaves, blocks, whole]


@pytest.mark.parametrize(("method", "options"), [(METHOD, {}), (BLOCKS, BLOCKS_AT)], ids=["module", "block"])
@pytest.mark.parametrize(
    ("first", "then"), [pair for pair in itertools.product(WAYS, WAYS) if pair != (nothing, nothing)]
)
def test_offloading_that_changes_after_enable(
    first: Callable[[Any], None], then: Callable[[Any], None], method: relcache.Method, options: Any
) -> None:
    """The picture is always the same, and nothing of relcache is left, not even inside hooks."""
    expected, wanted = cached(method, **options)
    built = flux()
    plain = run(built)
    first(built[0])
    handle = relcache.enable(built[0], method, **options)
    for change in (nothing, remove, then, remove, first, then):
        if change is then:
            remove(built[0])
        change(built[0])
        assert torch.equal(run(built), expected)
        assert handle.report() == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.disable()
    assert not traces(built[0].transformer)
    assert torch.equal(run(built), plain)
    remove(built[0])
    assert not traces(built[0].transformer)
    assert torch.equal(run(built), plain)


class Nothing(ModelHook):
    """A hook of accelerate that changes nothing."""


class Inert(DiffusersHook):
    """A hook of diffusers that changes nothing."""


def attention(built: Built) -> nn.Module:
    return built[0].transformer.transformer_blocks[0].attn


def put_a_forward_back(built: Built) -> None:
    module = attention(built)
    module.forward = type(module).forward.__get__(module)


def delete_the_forward(built: Built) -> None:
    del attention(built).forward


def swap_hooks_of_accelerate(built: Built) -> None:
    """The second replaces the first and everything that wraps it since."""
    add_hook_to_module(attention(built), Nothing())
    add_hook_to_module(attention(built), SequentialHook(Nothing(), Nothing()))


def remove_the_inner_of_two_hooks(built: Built) -> None:
    registry = HookRegistry.check_if_exists_or_initialize(attention(built))
    registry.register_hook(Inert(), "outer")
    registry.remove_hook("inner", recurse=False)


def compile_the_call(built: Built) -> None:
    attention(built).compile(backend="eager")


@pytest.mark.parametrize(
    "change",
    [put_a_forward_back, delete_the_forward, swap_hooks_of_accelerate, remove_the_inner_of_two_hooks, compile_the_call],
)
def test_a_replacement_that_is_lost_is_put_in_again(change: Callable[[Built], None]) -> None:
    expected, _ = cached()
    built = flux()
    registry = HookRegistry.check_if_exists_or_initialize(attention(built))
    if change is remove_the_inner_of_two_hooks:
        registry.register_hook(Inert(), "inner")
    if change is swap_hooks_of_accelerate:
        add_hook_to_module(attention(built), Nothing())
    handle = relcache.enable(built[0], METHOD)
    run(built)
    change(built)
    assert torch.equal(run(built), expected)
    assert handle.full_steps == FULL_STEPS
    assert not handle.report().fallbacks
    handle.disable()
    assert not traces(built[0].transformer)


@pytest.mark.parametrize("where", ["", "transformer_blocks.0.attn1", "transformer_blocks.1.ff"])
@pytest.mark.parametrize("direct", [False, True])
def test_a_class_that_is_given_another_forward(where: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds from the next call on, as without relcache."""
    model, expected = tiny_dit(), tiny_dit()
    handle = relcache.enable(model, METHOD)
    loop(model)
    kind = type(model.get_submodule(where))
    original = kind.forward

    def halved(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        if isinstance(output, Tensor):
            return output / 2
        output.sample.div_(2)
        return output

    monkeypatch.setattr(kind, "forward", functools.wraps(original)(halved))
    relcache.enable(expected, METHOD)
    call = (lambda *args, **kwargs: model.forward(*args, **kwargs)) if direct else model
    assert torch.equal(loop(call), loop(expected))
    assert handle.full_steps == [0, 1, 4, 7]
    handle.disable()
    assert not traces(model)


class Calling:
    """A wrapper that keeps what it wraps as an attribute."""

    def __init__(self, inner: Callable[..., Any], calls: list[str]):
        self.inner, self.calls = inner, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append("wrapper")
        return self.inner(*args, **kwargs)

    def method(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)


def by_closure(inner: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append("wrapper")
        return inner(*args, **kwargs)

    return call


def by_default(inner: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any, inner: Callable[..., Any] = inner, **kwargs: Any) -> Any:
        calls.append("wrapper")
        return inner(*args, **kwargs)

    return call


def by_partial(inner: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append("wrapper")
        return inner(*args, **kwargs)

    return functools.partial(call, inner)


@pytest.mark.parametrize(
    "wrap", [by_closure, by_default, by_partial, Calling, lambda inner, calls: Calling(inner, calls).method]
)
def test_a_wrapper_that_is_not_known_is_left_and_works(
    wrap: Callable[[Callable[..., Any], list[str]], Callable[..., Any]],
) -> None:
    """Someone's own wrapper around a unit is called at each step, cached ones too, as it was put there after ours."""
    expected, _ = cached()
    built, calls = flux(), list[str]()
    plain = run(built)
    handle = relcache.enable(built[0], METHOD)
    attention(built).forward = theirs = wrap(attention(built).forward, calls)
    assert torch.equal(run(built), expected)
    assert len(calls) == handle.report().steps
    assert handle.full_steps == FULL_STEPS
    with pytest.warns(UserWarning, match=r"forward was replaced by other code.*left in place"):
        handle.disable()
    assert attention(built).forward == theirs
    assert torch.equal(run(built), plain)


def test_a_wrapper_that_hides_what_it_calls_is_behind_ours() -> None:
    """Nobody can tell whether it calls the replacement, so a new one wraps it, as if the wrapper came first."""
    hidden: dict[str, Callable[..., Any]] = {}
    pictures = []
    for first in (True, False):
        built = flux()
        handle = None if first else relcache.enable(built[0], METHOD)
        hidden[str(first)] = attention(built).forward
        attention(built).forward = lambda *args, key=str(first), **kwargs: tuple(
            value / 2 for value in hidden[key](*args, **kwargs)
        )
        handle = handle or relcache.enable(built[0], METHOD)
        pictures += [run(built), run(built)]
        assert handle.full_steps == FULL_STEPS
        assert not handle.report().fallbacks
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda module: functools.update_wrapper(functools.partial(module.forward), module.forward),
        lambda module: functools.wraps(module.forward)(lambda *args, **kwargs: None),
        lambda module: torch.compile(module.forward, backend="eager"),
        lambda module: add_hook_to_module(module, Nothing()).forward,
    ],
)
def test_a_forward_of_ours_that_is_wrapped_has_the_signature_of_the_model(wrap: Callable[[Any], Any]) -> None:
    """As those of pipelines and of accelerate read it."""
    model = tiny_dit()
    expected = {name: inspect.signature(module.forward) for name, module in model.named_modules()}
    relcache.enable(model, METHOD)
    for name, module in model.named_modules():
        if "forward" in vars(module):
            assert inspect.signature(module.forward) == expected[name]
            assert inspect.signature(wrap(module)) == expected[name]


# Calls that go past torch's hooks


@torch.no_grad()
def loop(call: Callable[..., Any], steps: int = 10) -> Tensor:
    labels = torch.tensor([3, 5])
    sample = noise_for([0, 1])
    for timestep in timesteps_for(steps):
        sample = sample - 0.1 * call(sample, timestep=timestep.expand(2), class_labels=labels).sample
    return sample


def test_a_forward_that_is_called_directly() -> None:
    model, expected = tiny_dit(), tiny_dit()
    relcache.enable(expected, METHOD)
    handle = relcache.enable(model, METHOD)
    assert torch.equal(loop(model.forward), loop(expected))
    assert handle.full_steps == [0, 1, 4, 7]
    assert torch.equal(loop(model), loop(expected)), "calls of both kinds take turns"
    assert torch.equal(loop(lambda *args, **kwargs: type(model).forward(model, *args, **kwargs)), loop(tiny_dit()))
    handle.disable()
    assert torch.equal(loop(model.forward), loop(tiny_dit()))


def test_a_direct_call_that_fails_is_not_built_upon() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)
    with pytest.raises(IndexError):
        model.forward(noise_for([0, 1]), timestep=torch.ones(2), class_labels=torch.tensor([5000, 1]))
    loop(model.forward)
    assert handle.full_steps == [0, 1, 4, 7]


def test_direct_calls_behind_offloading_of_the_whole_model() -> None:
    """Accelerate puts back an earlier forward; the next reported call swaps it again."""
    model = tiny_dit()
    add_hook_to_module(model, Nothing())
    handle = relcache.enable(model, METHOD)
    remove_hook_from_module(model)
    loop(model)
    loop(model.forward)
    assert handle.full_steps == [0, 1, 4, 7]
    add_hook_to_module(model, Nothing())
    loop(model.forward)
    assert handle.report().steps == 10
    handle.disable()
    remove_hook_from_module(model)
    assert not traces(model)


def test_an_interrupted_call_does_not_hide_a_direct_one() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)

    def interrupt(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    watch = model.transformer_blocks[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(model)
    watch.remove()
    loop(model.forward)
    assert handle.full_steps == [0, 1, 4, 7]
    assert handle.report().steps == 10


def test_a_thread_whose_call_is_refused_does_not_disturb_another() -> None:
    """Each thread has its own mark that its call is reported."""
    model, seen = tiny_dit(), list[str]()
    watch = Watch()

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append("before")
        if threading.current_thread().name.startswith("refused"):
            raise RuntimeError("one at a time")

    def interfere(module: nn.Module, args: Any) -> None:
        with ThreadPoolExecutor(1, "refused") as pool:
            call = pool.submit(model.forward, *args, **CONDITION)
        with pytest.raises(RuntimeError, match="one at a time"):
            call.result()

    watch.watch(model, before, lambda module, args, kwargs, output: seen.append("after"))
    model.register_forward_pre_hook(interfere)
    with torch.no_grad():
        model(noise_for([0, 1]), **CONDITION)
    assert seen == ["before", "before", "after"]
    watch.restore()
    assert not traces(model)
