"""Others who lay hands on the model after `enable`, or before: offloading that comes and goes, wrappers, compilers."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import cache_dit
import pytest
import torch
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.group_offloading import apply_group_offloading
from peft import LoraConfig, get_peft_model
from small_pipelines import Built, flux
from test_ecosystem import FULL_STEPS, METHOD, run
from tiny import noise_for, run_loop, timesteps_for, tiny_dit
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import relcache
from relcache.patch import is_replaced

CPU = torch.device("cpu")
BLOCKS = relcache.RFC(1, 0.5)
BLOCKS_AT = {"granularity": "block"}


def cached(method: relcache.Method = METHOD, **options: Any) -> tuple[Tensor, relcache.Report]:
    """The picture of a fresh pipeline on which nobody else has laid hands, and the report."""
    built = flux()
    with relcache.enable(built[0], method, **options) as handle:
        return run(built), handle.report()


def traces(model: nn.Module) -> list[str]:
    """Modules that still hold something of relcache."""
    return [name for name, module in model.named_modules() for value in vars(module).values() if is_replaced(value)]


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
    """The picture is always the same, and nothing of relcache is left, wherever hooks have taken it in."""
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
    """The second is put in the place of the first, and of whatever has come over it since."""
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


def test_a_wrapper_that_is_not_known_is_left_and_works() -> None:
    """Someone's own wrapper around a unit is called at each step, cached ones too, as it was put there after ours."""
    expected, _ = cached()
    built, calls = flux(), []
    handle = relcache.enable(built[0], METHOD)
    ours = attention(built).forward

    class Wrapper:
        def __init__(self) -> None:
            self.inner = ours

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("wrapper")
            return self.inner(*args, **kwargs)

    attention(built).forward = Wrapper()
    assert torch.equal(run(built), expected)
    assert len(calls) == handle.report().steps
    assert handle.full_steps == FULL_STEPS


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
    """Accelerate puts back a forward from before; the next call that is told puts ours in again."""
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


# Wrappers around the transformer


def adapted(model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_k"])
        return get_peft_model(model, config).eval().requires_grad_(False)


def test_the_transformer_in_a_peft_model_is_found() -> None:
    built, expected = flux(), flux()
    built[0].transformer = adapted(built[0].transformer)
    plain = run(built)
    handle = relcache.enable(built[0], METHOD)
    expected[0].transformer = adapted(expected[0].transformer).get_base_model()
    with relcache.enable(expected[0], METHOD):
        assert torch.equal(run(built), run(expected))
    assert handle.full_steps == FULL_STEPS
    handle.disable()
    assert not traces(built[0].transformer)
    assert torch.equal(run(built), plain)
    with relcache.enable(built[0].transformer, METHOD) as handle:
        run(built)
    assert handle.full_steps == FULL_STEPS


class Around(nn.Module):
    """Calls what it holds, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module, extra: nn.Module | None = None):
        super().__init__()
        self.module, self.extra = module, extra

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def test_a_wrapper_that_holds_only_the_transformer_is_looked_through() -> None:
    model, expected = Around(Around(tiny_dit())), tiny_dit()
    relcache.enable(expected, METHOD)
    handle = relcache.enable(model, METHOD)
    assert torch.equal(loop(model), loop(expected))
    assert handle.full_steps == [0, 1, 4, 7]


def test_a_model_with_more_than_the_transformer_needs_a_spec() -> None:
    with pytest.raises(ValueError, match="no spec for Around"):
        relcache.enable(Around(tiny_dit(), nn.Linear(2, 2)), METHOD)
    with pytest.raises(ValueError, match="no spec for Sequential"):
        relcache.enable(nn.Sequential(tiny_dit(), tiny_dit()), METHOD)


def test_data_parallel_is_refused() -> None:
    with pytest.raises(TypeError, match=r"DataParallel copies the model.*enable model\.module"):
        relcache.enable(nn.DataParallel(tiny_dit()), METHOD)


# Compilers


@pytest.fixture
def compiler() -> Iterator[CompileCounter]:
    torch._dynamo.reset()
    counters.clear()
    yield CompileCounter()
    torch._dynamo.reset()


def compile_forward(model: Any, backend: Any) -> None:
    model.forward = torch.compile(model.forward, backend=backend)


def compile_forwards_of_blocks(model: Any, backend: Any) -> None:
    for block in model.transformer_blocks:
        compile_forward(block, backend)


def compile_forwards_of_units(model: Any, backend: Any) -> None:
    for block in model.transformer_blocks:
        compile_forward(block.attn1, backend)


@pytest.mark.parametrize("first", ["compiled", "enabled"])
@pytest.mark.parametrize("granularity", ["module", "block"])
@pytest.mark.parametrize("change", [compile_forward, compile_forwards_of_blocks, compile_forwards_of_units])
def test_a_forward_that_is_compiled(
    compiler: CompileCounter, change: Callable[[Any, Any], None], granularity: Any, first: str
) -> None:
    model, expected, plain = tiny_dit(), tiny_dit(), run_loop(tiny_dit())
    theirs = relcache.enable(expected, relcache.RFC(1, 0.8), granularity=granularity)
    picture = run_loop(expected)
    if first == "compiled":
        change(model, compiler)
    ours = relcache.enable(model, relcache.RFC(1, 0.8), granularity=granularity)
    if first == "enabled":
        change(model, compiler)
    assert torch.allclose(run_loop(model), picture, rtol=1e-4, atol=1e-5)
    assert ours.full_steps == theirs.full_steps
    assert 2 < len(ours.full_steps) < 12
    assert compiler.frame_count > 0
    assert not counters["graph_break"]
    graphs = compiler.frame_count
    run_loop(model)
    assert compiler.frame_count == graphs
    ours.disable()
    assert torch.allclose(run_loop(model), plain, rtol=1e-4, atol=1e-5)


def test_the_usual_wrapper_of_torch_compile_is_refused(compiler: CompileCounter) -> None:
    """After enable at the call, before it at once; each time the error names what to call."""
    built = flux()
    handle = relcache.enable(built[0], METHOD)
    transformer = built[0].transformer
    built[0].transformer = torch.compile(transformer, backend=compiler)
    with pytest.raises(RuntimeError, match=r"call transformer\.compile\(\) in the place of torch\.compile"):
        run(built)
    with pytest.raises(TypeError, match=r"model\.compile\(\).*Set pipe\.transformer = pipe\.transformer\._orig_mod"):
        relcache.enable(built[0], METHOD)
    with pytest.raises(TypeError, match=r"torch\.compile\(model\) gives a wrapper"):
        relcache.enable(Around(torch.compile(tiny_dit(), backend=compiler)), METHOD)
    built[0].transformer = transformer
    transformer.compile(backend=compiler)
    run(built)
    assert handle.full_steps == FULL_STEPS


def test_a_compiled_function_that_calls_the_model_is_refused(compiler: CompileCounter) -> None:
    model = tiny_dit()
    relcache.enable(model, METHOD)
    for call in (model, model.forward):
        with pytest.raises(RuntimeError, match="in which nothing can be cached"):
            loop(torch.compile(lambda *args, call=call, **kwargs: call(*args, **kwargs), backend=compiler))


@pytest.mark.parametrize("granularity", ["module", "block"])
@pytest.mark.parametrize("what", ["transformer_blocks.0", "transformer_blocks.0.attn1"])
@pytest.mark.parametrize("first", ["wrapped", "enabled"])
def test_modules_wrapped_one_by_one_are_refused(
    compiler: CompileCounter, what: str, granularity: Any, first: str
) -> None:
    """After enable at every call, so that no later one goes uncached without a word."""
    model = tiny_dit()
    plain = model.get_submodule(what)
    if first == "enabled":
        relcache.enable(model, METHOD, granularity="module")
    model.set_submodule(what, torch.compile(plain, backend=compiler))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{what} is wrapped by torch\.compile.*use module\.compile\(\)"):
            relcache.enable(model, METHOD, granularity=granularity) if first == "wrapped" else run_loop(model)
    if first == "enabled":
        model.set_submodule(what, plain)
        run_loop(model)


# Other caches


def dbcache(pipe: Any) -> None:
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2)
    cache_dit.enable_cache(pipe, cache_config=config)


def test_cache_dit_before() -> None:
    built = flux()
    dbcache(built[0])
    try:
        with pytest.raises(RuntimeError, match=r"another cache active, of cache-dit.*cache_dit\.disable_cache\(pipe\)"):
            relcache.enable(built[0], METHOD)
    finally:
        cache_dit.disable_cache(built[0])
    expected, _ = cached()
    relcache.enable(built[0], METHOD)
    assert torch.equal(run(built), expected)


def test_cache_dit_after() -> None:
    expected, _ = cached()
    built = flux()
    handle = relcache.enable(built[0], METHOD)
    dbcache(built[0])
    try:
        with pytest.raises(RuntimeError, match=r"another cache active, of cache-dit.*cache_dit\.disable_cache\(pipe\)"):
            run(built)
    finally:
        cache_dit.disable_cache(built[0])
    assert torch.equal(run(built), expected)
    assert handle.full_steps == FULL_STEPS


def test_tea_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces the class's forward, and marks the class."""
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)
    monkeypatch.setattr(type(model), "enable_teacache", True, raising=False)
    with pytest.raises(RuntimeError, match="TeaCache: set enable_teacache to False"):
        run_loop(model)
    with pytest.raises(RuntimeError, match="TeaCache"):
        relcache.enable(tiny_dit(), METHOD)
    monkeypatch.setattr(type(model), "enable_teacache", False, raising=False)
    run_loop(model)
    assert handle.report().steps == 12
