"""Wrappers around a transformer or its blocks, compilers of its forwards, other caches: each works or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cache_dit
import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_pipelines import flux
from test_ecosystem import FULL_STEPS, METHOD, run
from test_hands import cached, loop, traces
from tiny import run_loop, tiny_dit
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import relcache

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
    theirs = relcache.enable(expected, relcache.RFC(1, threshold=0.8), granularity=granularity)
    picture = run_loop(expected)
    if first == "compiled":
        change(model, compiler)
    ours = relcache.enable(model, relcache.RFC(1, threshold=0.8), granularity=granularity)
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
    for options in ({}, {"fullgraph": True}):
        built[0].transformer = torch.compile(transformer, backend=compiler, **options)
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


class Hiding(nn.Module):
    """A wrapper that stores a module under the name that FSDP's first kind, or checkpointing, does."""

    def __init__(self, module: nn.Module, name: str):
        super().__init__()
        self.register_module(name, module)
        self.name = name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.name)(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("_fsdp_wrapped_module", r"fully_shard\(module\)"), ("_checkpoint_wrapped_module", "put the module itself back")],
)
def test_other_wrappers_of_modules_are_refused(name: str, advice: str) -> None:
    model = tiny_dit()
    model.transformer_blocks[1] = Hiding(model.transformer_blocks[1], name)
    with pytest.raises(ValueError, match=rf"transformer_blocks\.1 is wrapped by .*{advice}"):
        relcache.enable(model, METHOD)
    inside = tiny_dit()
    inside.transformer_blocks[1].ff.net[2] = Hiding(inside.transformer_blocks[1].ff.net[2], name)
    with relcache.enable(inside, METHOD):  # wrappers inside a unit do no harm
        assert torch.equal(run_loop(inside), picture_of(METHOD))


def picture_of(method: relcache.Method) -> torch.Tensor:
    model = tiny_dit()
    relcache.enable(model, method)
    return run_loop(model)


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
