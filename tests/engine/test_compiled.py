"""Compiled transformers: two graphs, of a full step and of a cached one, whatever steps are full; no breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, along
from test_custom_models import SPEC as STACK
from test_custom_models import Stack, run
from test_families import sample
from test_granularity import SPEC as TOWER
from test_granularity import Tower, climb
from tiny import BrokenOff, noise_for, relative_error, run_guided, run_loop, timesteps_for, tiny_dit
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import relcache

STEPS = 9
FLUX, HUNYUAN_VIDEO, WAN = (
    next(family for family in FAMILIES if family.class_name == name)
    for name in ("FluxTransformer2DModel", "HunyuanVideoTransformer3DModel", "WanTransformer3DModel")
)
CASES: list[tuple[Family, str, Any]] = [  # every kind of unit under both ways to compile; tracing takes seconds
    (FLUX, "model", "module"),  # joint attention and parallel blocks
    (FLUX, "model", "stack"),
    (FLUX, "blocks", "module"),
    (HUNYUAN_VIDEO, "blocks", "stack"),
    (WAN, "model", "block"),
    (WAN, "blocks", "module"),
]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compile(model: nn.Module, what: str, counter: CompileCounter) -> None:
    """The whole model, or each of its blocks, as `compile_repeated_blocks` does."""
    if what == "model":
        model.compile(backend=counter)
        return
    kinds = {type(block) for stack in model.children() if isinstance(stack, nn.ModuleList) for block in stack}
    for module in model.modules():
        if type(module) in kinds:
            module.compile(backend=counter)


def graphs_alone(family: Family, what: str, calls: list[Any]) -> int:
    counter = CompileCounter()
    model = family.model()
    compile(model, what, counter)
    sample(model, calls)
    torch._dynamo.reset()
    counters.clear()
    return counter.frame_count


@pytest.mark.parametrize(
    ("family", "what", "granularity"), CASES, ids=lambda value: getattr(value, "class_name", value)
)
def test_two_graphs_and_no_breaks(family: Family, what: str, granularity: Any) -> None:
    """Each graph that the model has by itself becomes two; none is made after the second full and cached steps."""
    eager, model = family.model(), family.model()
    calls = along(family, eager, STEPS)
    alone = graphs_alone(family, what, calls[:2])
    plan = relcache.Plan([0, 1, 3, 4, 8])
    pair: dict[str, Any] = {
        "forecaster": relcache.Relational(2),
        "granularity": granularity,
        "num_inference_steps": STEPS,
    }
    with relcache.enable(eager, schedule=plan, **pair) as handle:
        expected = sample(eager, calls)
        held = handle.report().cache_bytes
    counter = CompileCounter()
    compile(model, what, counter)
    handle = relcache.enable(model, schedule=plan, **pair)
    got = sample(model, calls[:6])
    graphs = counter.frame_count
    got += sample(model, calls[6:])
    assert counter.frame_count == graphs, "no graph after the second full and second cached step"
    assert graphs <= 2 * alone if what == "model" or granularity == "module" else graphs <= alone + 1
    assert not counters["graph_break"]
    report = handle.report()
    assert report.full_steps == [0, 1, 3, 4, 8]
    assert report.cache_bytes == held
    assert not [reason for reason in report.fallbacks if "full step" in reason or "in full" in reason]
    for ours, theirs in zip(got, expected, strict=True):
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True))


# What decides, what changes between requests, what goes wrong


@pytest.mark.parametrize(
    ("first", "what", "granularity"),
    [("compiled", "model", "module"), ("enabled", "model", "stack"), ("compiled", "blocks", "stack"),
     ("enabled", "blocks", "module")],
)  # fmt: skip
def test_an_error_budget_decides_as_it_does_uncompiled(first: str, what: str, granularity: Any) -> None:
    method = relcache.RFC(order=2, threshold=0.5)
    eager, model, counter = tiny_dit(), tiny_dit(), CompileCounter()
    expected_handle = relcache.enable(eager, method, granularity=granularity)
    expected = run_loop(eager, steps=14)
    if first == "compiled":
        compile(model, what, counter)
    handle = relcache.enable(model, method, granularity=granularity)
    if first == "enabled":
        compile(model, what, counter)
    got = run_loop(model, steps=14)
    report, wanted = handle.report(), expected_handle.report()
    assert 2 < report.nfc < 14
    assert report.full_steps == wanted.full_steps
    for ours, theirs in zip(report.signal, wanted.signal, strict=True):
        assert (ours is None and theirs is None) or ours == pytest.approx(theirs, rel=1e-4)
    assert (report.flops, report.cache_bytes, report.fallbacks) == (wanted.flops, wanted.cache_bytes, wanted.fallbacks)
    assert relative_error(got, expected) < 1e-5
    graphs = counter.frame_count
    assert graphs > 0
    assert torch.equal(run_loop(model, steps=14), got)
    assert counter.frame_count == graphs
    assert not counters["graph_break"]


def test_blocks_of_one_kind_share_their_graphs() -> None:
    """As many graphs for nine blocks as for two: else torch.compile gives up after eight."""
    made = []
    for blocks in (2, 9):
        torch._dynamo.reset()
        model, counter = tiny_dit(blocks=blocks), CompileCounter()
        compile(model, "blocks", counter)
        relcache.enable(model, relcache.TaylorSeer(2, interval=4))
        run_loop(model, steps=10)
        made.append(counter.frame_count)
    assert made[0] == made[1]


@pytest.mark.parametrize("first", ["compiled", "enabled"])
def test_a_compiled_model_is_as_it_was_after_disable(first: str) -> None:
    model, plain, counter = tiny_dit(), tiny_dit(), CompileCounter()
    expected = run_loop(plain)
    if first == "compiled":
        compile(model, "model", counter)
        call = model._compiled_call_impl
    handle = relcache.enable(model, relcache.RFC(2, threshold=0.5))
    if first == "enabled":
        compile(model, "model", counter)
    assert not torch.equal(run_loop(model), expected)
    handle.disable()
    assert "compile" not in vars(model)
    if first == "compiled":
        assert model._compiled_call_impl is call
    assert torch.equal(run_loop(model), expected)


def test_branches_sizes_and_lengths_of_compiled_requests() -> None:
    """Each request is what it is uncompiled: guided, of another batch, of another number of steps."""
    eager, model, counter = tiny_dit(), tiny_dit(), CompileCounter()
    compile(model, "model", counter)
    handles = [relcache.enable(each, relcache.RFC(2, threshold=0.5)) for each in (eager, model)]
    for request in (
        lambda each: run_guided(each, 10),
        lambda each: run_loop(each, torch.tensor([1]), 8, seeds=[4]),
        lambda each: run_loop(each, torch.tensor([1, 2, 3]), 12, seeds=[4, 5, 6]),
    ):
        assert relative_error(request(model), request(eager)) < 1e-5
        theirs, ours = (handle.report() for handle in handles)
        assert (ours.full_steps, ours.branches, ours.cache_bytes) == (
            theirs.full_steps, theirs.branches, theirs.cache_bytes,
        )  # fmt: skip


@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_another_size_within_a_compiled_request(granularity: Any) -> None:
    """What is cached, the error signal too, begins anew, as it does uncompiled."""
    eager, model, counter = tiny_dit(), tiny_dit(), CompileCounter()
    compile(model, "model", counter)
    found = []
    for each in (eager, model):
        handle = relcache.enable(each, relcache.RFC(2, threshold=2.0), granularity=granularity)
        labels, table, outputs = torch.tensor([1, 2]), timesteps_for(12), []
        with torch.no_grad():
            for step in range(12):
                sample = noise_for([0, 1])[..., : 8 if step < 6 else 4]
                given = {"timestep": table[step].expand(2), "class_labels": labels}
                outputs.append(each(sample, **given).sample)
        found.append((handle.report(), outputs))
    (theirs, expected), (ours, got) = found
    assert ours.full_steps == theirs.full_steps
    assert {6, 7} <= set(ours.full_steps)
    assert ours.nfc < 12
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(got, expected, strict=True))


def test_sampled_tokens_in_compiled_code() -> None:
    eager, model, counter = tiny_dit(), tiny_dit(), CompileCounter()
    compile(model, "model", counter)
    for each in (eager, model):
        relcache.enable(each, relcache.RFC(2, threshold=2.0, token_stride=4))
    for size in (8, 12):
        assert relative_error(run_loop(model, size=size), run_loop(eager, size=size)) < 1e-5
    assert not counters["graph_break"]


def test_an_error_in_a_compiled_call_is_not_built_upon() -> None:
    model, eager, counter = tiny_dit(), tiny_dit(), CompileCounter()
    compile(model, "model", counter)
    handle = relcache.enable(model, relcache.TaylorSeer(1, interval=4))

    def fail(module: nn.Module, args: Any, output: Tensor) -> None:
        raise BrokenOff

    watch = model.proj_out_2.register_forward_hook(fail)
    with pytest.raises(BrokenOff):
        run_loop(model, steps=3)
    watch.remove()
    with relcache.enable(eager, relcache.TaylorSeer(1, interval=4)):
        expected = run_loop(eager, steps=7)
    assert relative_error(run_loop(model, steps=7), expected) < 1e-5
    assert handle.report().full_steps == [0, 1, 5]


def test_packed_features_are_unpacked_in_the_graph() -> None:
    made = []
    for compiled in (False, True):
        model, counter = tiny_dit(), CompileCounter()
        if compiled:
            compile(model, "model", counter)
        relcache.enable(model, relcache.TaylorSeer(2, interval=4), cache_dtype="int8")
        made.append(run_loop(model, steps=10))
    assert relative_error(made[1], made[0]) < 1e-5
    assert counter.frame_count == 2
    assert not counters["graph_break"]


def test_units_on_two_devices_have_coefficients_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the last block were on another device: what a cached step needs is on the device of the unit's features."""
    model = tiny_dit()
    model.compile(backend=CompileCounter())
    cache = relcache.enable(model, relcache.TaylorSeer(1, interval=4))._session.cache
    settle, calls, found = cache.plan_call, [], []

    def settled(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # the first cached step
            (branch,) = cache.request.branches.values()
            stream = branch.cells[-1].streams[0]
            stream.state = stream.state._replace(stack=stream.state.stack.to("meta"))
        settle(*args)
        if len(calls) == 3:
            found.extend(visit.coefficients for visit in cache.visits)
            raise BrokenOff

    monkeypatch.setattr(cache, "plan_call", settled)
    with pytest.raises(BrokenOff):
        run_loop(model)
    assert [coefficients.device.type for coefficients in found] == ["cpu", "cpu", "cpu", "meta"]
    assert found[0] is found[2]


# What is refused uncompiled is refused compiled


def tower(without: int) -> tuple[Tensor, Tensor]:
    """A cached step of a compiled run of blocks that leaves one out, and what full compute gives."""
    model = Tower().eval()
    model.compile(backend=CompileCounter())
    relcache.enable(model, relcache.TaylorSeer(1, interval=4), spec=TOWER, granularity="stack")
    for step in range(2):
        climb(model, step)
    return climb(model, 2, without=without), climb(Tower(), 2, without=without)


def test_a_compiled_run_without_its_last_block_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"the last block of layers was left out of a cached step"):
        tower(without=3)


def test_a_compiled_run_without_its_first_block_is_computed() -> None:
    with pytest.warns(UserWarning, match="reached none of the cached modules"):
        got, expected = tower(without=0)
    assert torch.equal(got, expected)


def test_a_module_that_compiled_code_calls_twice_is_an_error() -> None:
    model = Stack("twice").eval()
    model.compile(backend=CompileCounter())
    relcache.enable(model, relcache.FORA(4), spec=STACK)
    with pytest.raises(TypeError, match=r"layers\.0\.mix was called twice in one forward"):
        run(model)


def test_a_module_of_several_calls_is_refused_in_compiled_code() -> None:
    model = Stack("twice").eval()
    spec = relcache.ModelSpec("Stack", modules=(relcache.Part("layers.*.mix", calls=2),), timestep="t")
    model.compile(backend=CompileCounter())
    relcache.enable(model, relcache.FORA(4), spec=spec)
    with pytest.raises(ValueError, match=r"a forward calls this module more than once.*granularity='block'"):
        run(model)


@pytest.mark.parametrize("whose", ["argument", "parameter"])
def test_a_gradient_through_a_compiled_model_is_an_error(whose: str) -> None:
    model = tiny_dit().requires_grad_(whose == "parameter")
    compile(model, "model", CompileCounter())
    relcache.enable(model, relcache.FORA(4))
    given = {"timestep": torch.tensor([5, 5]), "class_labels": torch.tensor([1, 1])}
    sample = torch.zeros(2, 4, 8, 8, requires_grad=whose == "argument")
    with pytest.raises(RuntimeError, match=r"a gradient is wanted of a compiled model.*torch\.no_grad"):
        model(sample, **given)
    with torch.no_grad():
        assert model(sample, **given).sample.shape == sample.shape
