"""Whole blocks and runs of blocks as units, in every family: what is skipped, and what comes out."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, along
from oracle import Past, Recipe, forecast
from test_families import in_rows, rows_of, sample
from tiny import BrokenOff, relative_error, run_loop, tiny_dit
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import relcache
from relcache.models import Unit
from relcache.models.coarse import coarsened
from relcache.storage.store import Store, tensors

STEPS = 7
FULL = [0, 1, 4]
WITHOUT_STACK = {
    "LatteTransformer3DModel",  # spatial and temporal blocks by turns
    "BriaFiboTransformer2DModel",  # each block gets other text
    "HiDreamImageTransformer2DModel",  # likewise
}


class Streams:
    """Records what goes into the first block of a unit and comes out of the last, and counts the blocks that work."""

    def __init__(self, unit: Unit, fine: dict[str, nn.Module], rows: int):
        self.unit, self.rows, self.inputs, self.outputs = unit, rows, [], []
        self.worked: set[tuple[str, int]] = set()
        blocks = list(unit.modules.values())
        blocks[0].register_forward_pre_hook(self._before, with_kwargs=True)
        blocks[-1].register_forward_hook(self._after)
        for name, module in fine.items():
            if any(name.startswith(f"{block}.") for block in unit.modules):
                leaf = next(child for child in module.modules() if not list(child.children()))
                leaf.register_forward_hook(lambda *_, name=name: self.worked.add((name, len(self.outputs))))

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        self.inputs.append([given[name].detach().clone() for name in self.unit.part.streams])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        entries = output if isinstance(output, (tuple, list)) else (output,)
        places = self.unit.part.returns
        self.outputs.append([entries[p].detach().clone() if entries[p] is not None else None for p in places])


@pytest.fixture(scope="module")
def expected(family: Family) -> list[list[Tensor]]:
    """What a family's model returns that is never enabled: once for both granularities."""
    model = family.model()
    return sample(model, along(family, model, STEPS))


@pytest.mark.parametrize("granularity", ["block", "stack"])
@pytest.mark.parametrize("family", rows_of(FAMILIES), scope="module")
def test_residuals_of_blocks(family: Family, granularity: Any, expected: list[list[Tensor]]) -> None:
    """On a cached step no block works, and its output is its input plus the forecast of output minus input."""
    model = family.model()
    calls = along(family, model, STEPS)
    handle = relcache.enable(
        model, forecaster=relcache.Relational(1), schedule=relcache.Plan(FULL), num_inference_steps=STEPS,
        granularity=granularity,
    )  # fmt: skip
    spec = coarsened(family.spec, model, granularity)
    units = [unit for unit in spec.units(model) if unit.part.residual]
    assert units
    assert {unit.name for unit in units} <= set(handle.units)
    if granularity == "stack" and family.class_name not in WITHOUT_STACK:
        assert any(unit.part.run for unit in units)
    fine = {name: module for unit in family.spec.units(model) for name, module in unit.modules.items()}
    watched = [Streams(unit, fine, family.size.batch) for unit in units]
    outputs = sample(model, calls)
    report = handle.report()
    assert report.full_steps == FULL, report.fallbacks
    for step in FULL:
        assert all(torch.equal(a, b) for a, b in zip(outputs[step], expected[step], strict=True)) or step > 1
    cached = [step for step in range(STEPS) if step not in FULL]
    assert any(not torch.equal(a, b) for step in cached for a, b in zip(outputs[step], expected[step], strict=True))
    for streams in watched:
        assert {step for _, step in streams.worked} == set(FULL)
        layout = streams.unit.part.layout
        for place in range(len(streams.unit.part.streams)):
            check(streams, place, layout)
    size = family.size
    estimate = handle.estimate(size.height, width=size.width, frames=size.frames, batch=size.batch, text=size.text)
    assert abs(estimate - report.cache_bytes) <= 0.05 * report.cache_bytes
    handle.disable()
    again = sample(model, calls)
    assert all(torch.equal(a, b) for past, now in zip(expected, again, strict=True)
               for a, b in zip(past, now, strict=True))  # fmt: skip


def check(streams: Streams, place: int, layout: str) -> None:
    past = Past()
    for step in range(STEPS):
        output = streams.outputs[step][place]
        if output is None:
            return
        present = in_rows(streams.inputs[step][place], layout, streams.rows)
        residual = in_rows(output, layout, streams.rows) - present
        if step in FULL:
            past.positions.insert(0, STEPS - step)
            past.inputs.insert(0, present)
            past.outputs.insert(0, residual)
        else:
            # text enters the first block as it did at the last step: then there is nothing to relate to
            kind = "taylor" if torch.equal(past.inputs[0], past.inputs[1]) else "relational"
            known: Tensor = forecast(Recipe(kind, 1), past, STEPS - step, present)
            assert relative_error(residual + present, known + present) < 1e-4, (streams.unit.name, place, step)


# Runs of blocks


def test_one_unit_for_the_whole_of_flux() -> None:
    """Double and single blocks hand the same two streams on, so they are one run; those of FLUX.2 are two."""
    flux, flux2 = (next(f for f in FAMILIES if f.class_name == f"Flux{n}Transformer2DModel") for n in ("", "2"))
    handle = relcache.enable(flux.model(), relcache.RFC(), granularity="stack")
    assert handle.units == ["transformer_blocks+single_transformer_blocks"]
    assert relcache.enable(flux2.model(), relcache.RFC(), granularity="stack").units == [
        "transformer_blocks", "single_transformer_blocks",
    ]  # fmt: skip


def test_cost_of_a_cached_step() -> None:
    """FLOPs of a cached step are those outside the blocks, and a stack holds a block's share of what modules hold."""
    held, flops = {}, {}
    for granularity in ("module", "block", "stack"):
        model = tiny_dit(blocks=6)
        handle = relcache.enable(model, relcache.TaylorSeer(1, interval=4), granularity=granularity)
        run_loop(model)
        report = handle.report()
        held[granularity] = report.cache_bytes
        flops[granularity] = report.flops
        inside = sum(
            relcache.count_flops(
                block, torch.zeros(2, 16, 16), timestep=torch.zeros(2), class_labels=torch.zeros(2).long()
            )
            for block in model.transformer_blocks
        )
        if granularity != "module":
            assert report.flops == report.full_flops - (report.steps - report.nfc) * inside
    assert flops["stack"] == flops["block"] < flops["module"]
    assert held["stack"] * 6 == held["block"] == held["module"] / 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, trace: bool = False) -> Any:
        changed = hidden + self.mix(hidden)
        return {"hidden": changed} if trace else changed


class Tower(nn.Module):
    """Blocks, of which a call may leave some out."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.ModuleList(Block() for _ in range(4))

    def forward(self, hidden: Tensor, t: Tensor, without: int | None = None, fail: bool = False) -> Tensor:
        hidden = hidden + t.reshape(-1, 1, 1) / 1000
        for place, layer in enumerate(self.layers):
            if fail and place == 2:
                raise BrokenOff
            if place != without:
                hidden = layer(hidden)
        return hidden


def example(config: Any, size: relcache.Size) -> dict[str, Any]:
    return {"hidden": torch.randn(size.batch, size.height * size.width, 4), "t": torch.zeros(size.batch)}


SPEC = relcache.ModelSpec("Tower", modules=("layers.*.mix",), timestep="t", inputs=example)
HIDDEN = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))


def climb(model: Tower, step: int, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(HIDDEN, torch.full((2,), 900.0 - 100 * step), **options)


def test_a_run_without_its_last_block_is_an_error() -> None:
    model = Tower().eval()
    handle = relcache.enable(model, relcache.TaylorSeer(1, interval=4), spec=SPEC, granularity="stack")
    for step in range(2):
        climb(model, step, without=9)
    with pytest.raises(RuntimeError, match=r"the last block of layers was left out of a cached step"):
        climb(model, 2, without=3)
    assert torch.equal(climb(model, 0), climb(Tower(), 0))
    assert handle.report().full_steps == [0]


def test_a_run_without_its_first_block_is_computed() -> None:
    model, plain = Tower().eval(), Tower()
    relcache.enable(model, relcache.TaylorSeer(1, interval=4), spec=SPEC, granularity="stack")
    for step in range(2):
        climb(model, step)
    with pytest.warns(UserWarning, match="reached none of the cached modules"):
        assert torch.equal(climb(model, 2, without=0), climb(plain, 2, without=0))
    assert not torch.equal(climb(model, 3), climb(plain, 3))


def test_an_error_inside_a_run() -> None:
    """Half a run is not built upon: the next call begins a request."""
    model, plain = Tower().eval(), Tower()
    handle = relcache.enable(model, relcache.TaylorSeer(1, interval=4), spec=SPEC, granularity="stack")
    climb(model, 0)
    with pytest.raises(BrokenOff):
        climb(model, 1, fail=True)
    with pytest.warns(UserWarning, match="reached none of the cached modules"):
        assert torch.equal(climb(model, 0, without=0), climb(plain, 0, without=0))
    handle.reset()
    assert torch.equal(climb(model, 0), climb(plain, 0))
    climb(model, 1)
    climb(model, 2)
    assert handle.report().full_steps == [0, 1]


def test_blocks_that_cannot_be_taken_whole() -> None:
    class Odd(Tower):
        def forward(self, hidden: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            for layer in self.layers:
                hidden = layer(hidden, trace=True)["hidden"]
            return hidden

    with pytest.raises(ValueError, match=r"the blocks of Odd \(layers\.\*\) cannot be skipped whole"):
        relcache.enable(Odd(), relcache.RFC(), spec=SPEC, granularity="block")
    with pytest.raises(ValueError, match=r"does not say how to call the model"):
        relcache.enable(Tower(), relcache.RFC(), spec=replace(SPEC, inputs=None), granularity="stack")
    with pytest.raises(ValueError, match=r"the granularity is one of 'module', 'block', 'stack', got 'stacks'"):
        relcache.enable(Tower(), relcache.RFC(), spec=SPEC, granularity="stacks")  # type: ignore[arg-type]


def test_blocks_that_write_into_their_input_stay_modules() -> None:
    class InPlace(Block):
        def forward(self, hidden: Tensor, trace: bool = False) -> Tensor:
            hidden += self.mix(hidden)
            return hidden

    model = Tower()
    model.layers = nn.ModuleList(InPlace() for _ in range(4))
    with pytest.raises(ValueError, match="cannot be skipped whole"):
        relcache.enable(model, relcache.RFC(), spec=SPEC, granularity="stack")


def test_a_config_names_granularity_and_dtype() -> None:
    method = relcache.method_from_text("rfc:order=1,threshold=0.2,granularity=stack,cache_dtype=int8")
    assert (method.granularity, method.cache_dtype) == ("stack", "int8")
    with pytest.raises(ValueError, match="did you mean 'granularity'"):
        relcache.method_from_text("fora:interval=4,granularty=stack")


# The error that decides


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("granularity", ["module", "block", "stack"])
def test_the_error_is_read_at_the_first_module_whatever_the_units_are(granularity: Any, stride: int) -> None:
    """On a loop whose samples do not depend on the forecasts, errors and full steps are those of modules."""
    found = []
    for chosen in ("module", granularity):
        model = tiny_dit(blocks=3)
        handle = relcache.enable(model, relcache.RCS(2, threshold=0.4, token_stride=stride), granularity=chosen)
        given = {"class_labels": torch.tensor([1, 2])}
        with torch.no_grad():
            for step in range(12):
                sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * (1 + step**2 / 50)
                model(sample, timestep=torch.tensor([900 - 60 * step] * 2), **given)
        found.append(handle.report())
    assert 2 < found[0].nfc < 12
    assert found[0].signal == found[1].signal
    assert found[0].full_steps == found[1].full_steps
    assert not found[1].fallbacks


def test_a_sampled_error_is_another_and_holds_less() -> None:
    reports = []
    for stride in (1, 3):
        model = tiny_dit(blocks=3)
        handle = relcache.enable(model, relcache.RFC(1, threshold=0.4, token_stride=stride), granularity="stack")
        run_loop(model)
        reports.append(handle.report())
    assert reports[0].signal[2] != reports[1].signal[2]
    assert reports[1].signal[2] == pytest.approx(reports[0].signal[2], rel=0.5)
    feature, sampled = 2 * 16 * 16 * 4, 2 * 6 * 16 * 4  # tokens 0, 3, …, 15 of 16
    assert reports[0].cache_bytes - reports[1].cache_bytes == 3 * (feature - sampled)


@pytest.mark.parametrize("granularity", ["block", "stack"])
def test_enabled_in_inference_mode(granularity: Any) -> None:
    """Also a model that was made there: finding its blocks needs tensors that count their changes."""
    outputs = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            model = tiny_dit(blocks=3)
            handle = relcache.enable(model, relcache.RFC(1, threshold=2.0), granularity=granularity)
            outputs.append(run_loop(model))
        assert handle.report().nfc < handle.report().steps
    torch.testing.assert_close(outputs[1], outputs[0])


# Compiled blocks


@pytest.mark.parametrize("granularity", ["block", "stack"])
@pytest.mark.parametrize("first", ["compiled", "enabled"])
def test_compiled_blocks(granularity: Any, first: str) -> None:
    """No graph breaks, and no graph more than without relcache, whatever steps are full; no trace afterwards."""
    torch._dynamo.reset()
    counter, alone = CompileCounter(), CompileCounter()
    model, plain = tiny_dit(blocks=3), tiny_dit(blocks=3)
    for block in plain.transformer_blocks:
        block.compile(backend=alone, fullgraph=True)
    expected = run_loop(plain)
    torch._dynamo.reset()

    def compile() -> None:
        for block in model.transformer_blocks:
            block.compile(backend=counter, fullgraph=True)

    if first == "compiled":
        compile()
    handle = relcache.enable(model, relcache.TaylorSeer(1, interval=3), granularity=granularity)
    if first == "enabled":
        compile()
    before = run_loop(model, steps=8)
    graphs = counter.frame_count
    assert graphs == alone.frame_count
    assert handle.report().full_steps == [0, 1, 4, 7]
    eager = tiny_dit(blocks=3)
    with relcache.enable(eager, relcache.TaylorSeer(1, interval=3), granularity=granularity):
        assert relative_error(before, run_loop(eager, steps=8)) < 1e-5
    run_loop(model, steps=12)
    assert counter.frame_count == graphs
    handle.disable()
    assert torch.equal(run_loop(model), expected)
    assert counter.frame_count == graphs


# What is held


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float8", 2**-4), ("int8", 0.5 / 127)])
def test_packed_features(dtype: Any, error: float) -> None:
    """Each entry is off by a share of itself (bfloat16, float8), or of its token's greatest (int8)."""
    features = torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    features[0, 0] = 0
    state = (features, {"small": torch.ones(3), "steps": (4, 2)}, None)
    store = Store(dtype)
    packed = store.put(state, [features])
    again = store.get(packed)
    assert again[1:] == state[1:]
    assert again[0].dtype == features.dtype
    against = features.abs().amax(-1, keepdim=True) if dtype == "int8" else features.abs()
    smallest = features.abs().amax(-1, keepdim=True) / 448 * 2**-9 if dtype == "float8" else 0.0
    assert bool(((again[0] - features).abs() <= error * against * 1.001 + smallest).all())
    bytes_of = [sum(t.numel() * t.element_size() for t in tensors(tree)) for tree in (state, packed)]
    assert bytes_of[1] < bytes_of[0] * {"bfloat16": 0.51, "float8": 0.28, "int8": 0.28}[dtype]


@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.003), ("float8", 0.05), ("int8", 0.01)])
def test_a_packed_cache_is_close_to_one_that_is_not(granularity: Any, dtype: Any, most: float) -> None:
    made, held = [], []
    for cache_dtype in ("features", dtype):
        model = tiny_dit(blocks=3)
        handle = relcache.enable(
            model, relcache.RFC(order=2, threshold=1e9, longest_gap=4), granularity=granularity, cache_dtype=cache_dtype
        )
        made.append(run_loop(model))
        report = handle.report()
        assert 2 < report.nfc < report.steps
        held.append(report.cache_bytes)
        assert handle.estimate(8, width=8, batch=2) == report.cache_bytes
    assert 0 < relative_error(made[1], made[0]) < most
    assert held[1] < 0.6 * held[0]
