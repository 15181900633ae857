"""The one table: every family with FORA, TaylorSeer and RFC, compared with the plain equations from outside.

Torch's own hooks record the inputs and outputs of the modules; the oracle forecasts from these records alone.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from families import FAMILIES, Family, along
from oracle import Past, Recipe, forecast, input_error
from packaging.version import Version
from tiny import relative_error
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import relcache
from relcache import RFC, ModelSpec, Size, TaylorSeer
from relcache.engine.state import Request
from relcache.models import SPECS, UNSUPPORTED, Unit

STEPS = 9
RECIPES = {
    "FORA": Recipe("reuse", 0, interval=3),
    "TaylorSeer-m1": Recipe("taylor", 1, interval=3),
    "RFC-m1": Recipe("relational", 1, threshold=0.0),  # `recipe_for` sets the threshold
    "RFC-m2": Recipe("relational", 2, threshold=0.0),
}
OLDER = f"diffusers {diffusers.__version__} has no such class"
PACKED = [family for family in FAMILIES if any(part.layout == "packed" for part in family.spec.parts)]


def rows_of(families: list[Family]) -> list[Any]:
    return [
        pytest.param(
            family, id=str(family), marks=pytest.mark.skipif(not hasattr(diffusers, family.class_name), reason=OLDER)
        )
        for family in families
    ]


TABLE = rows_of(FAMILIES)


def method_for(recipe: Recipe) -> relcache.Method:
    if recipe.threshold is not None:
        return RFC(recipe.order, threshold=recipe.threshold)
    return relcache.FORA(3) if recipe.forecast == "reuse" else TaylorSeer(recipe.order, interval=3)


def recipe_for(name: str, family: Family) -> Recipe:
    """Set RFC's threshold to half of the error's sum over a request without full steps after the warm-up."""
    recipe = RECIPES[name]
    if recipe.threshold is None:
        return recipe
    model = family.model()
    handle = relcache.enable(model, RFC(recipe.order, threshold=1e9))
    sample(model, along(family, model, STEPS))
    errors = [error for error in request_of(handle).signal if error is not None]
    assert len(errors) == STEPS - 2, handle.report().fallbacks
    return Recipe(recipe.forecast, recipe.order, threshold=sum(errors) / 2)


def request_of(handle: relcache.Handle) -> Request:
    """Return the last request; the report would count FLOPs, the slowest part of these tests."""
    request = handle._session.cache.request
    assert request is not None
    return request


@torch.no_grad()
def sample(model: nn.Module, calls: list[dict[str, Any]]) -> list[list[Tensor]]:
    return [[leaf for leaf in tree_leaves(model(**call)) if isinstance(leaf, Tensor)] for call in calls]


def in_rows(features: Tensor, layout: str, rows: int) -> Tensor:
    """Return the features with the samples in the first dimension, by the meaning of the layout's name."""
    if layout == "folded":
        return features.reshape(rows, -1, *features.shape[1:])
    return {"rows": features, "tokens first": features.movedim(1, 0), "packed": features[None]}[layout]


class Watcher:
    """Records the inputs and outputs of a unit's streams, and the number of calls of the modules inside it."""

    def __init__(self, unit: Unit, rows: int):
        self.unit, self.rows = unit, rows
        self.inputs: list[list[Tensor | None]] = []
        self.outputs: list[list[Tensor | None]] = []
        self.runs: dict[str, int] = {}
        self.calls = -1
        first, *_, last = [*unit.modules.values()] * 2
        first.register_forward_pre_hook(self._before, with_kwargs=True)
        last.register_forward_hook(self._after)
        for name, module in unit.modules.items():
            for inner, child in module.named_modules():
                if child not in unit.modules.values() and not list(child.children()):
                    child.register_forward_hook(lambda *_, name=f"{name}.{inner}": self._count(name))

    def _count(self, name: str) -> None:
        self.runs[name] = self.runs.get(name, 0) + 1

    def _rows(self, value: Any) -> Tensor | None:
        return in_rows(value.detach().clone(), self.unit.part.layout, self.rows) if isinstance(value, Tensor) else None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += 1
        if self.calls % self.unit.part.calls != self.unit.turn:
            return
        arguments = list(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments.items())[1:]
        streams = self.unit.part.streams or (arguments[0][0],)
        self.inputs.append([self._rows(dict(arguments).get(name)) for name in streams])

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.calls % self.unit.part.calls != self.unit.turn:
            return
        outputs = output if isinstance(output, tuple) else (output,)
        self.outputs.append([self._rows(value) for value in outputs])


class Plain(NamedTuple):
    """A family's model that is never enabled: its calls, its outputs, and the module calls inside each unit in one."""

    calls: list[dict[str, Any]]
    outputs: list[list[Tensor]]
    runs: list[dict[str, int]]


@pytest.fixture(scope="module")
def plain(family: Family) -> Plain:
    """Made once for all the methods of a family."""
    model = family.model()
    calls = along(family, model, STEPS)
    outputs = sample(model, calls)
    watchers = [Watcher(unit, family.size.batch) for unit in family.spec.units(model)]
    sample(model, calls[:1])
    return Plain(calls, outputs, [watcher.runs for watcher in watchers])


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", TABLE, scope="module")
def test_family(family: Family, name: str, plain: Plain) -> None:
    recipe = recipe_for(name, family)
    model, calls, expected = family.model(), plain.calls, plain.outputs
    handle = relcache.enable(model, method_for(recipe))
    assert len(handle.units) == family.units
    watchers = [Watcher(unit, family.size.batch) for unit in family.spec.units(model)]
    outputs = sample(model, calls)
    request = request_of(handle)

    assert all(bool(torch.isfinite(output).all()) for step in outputs for output in step)
    full_steps = full_steps_for(recipe, watchers[0])
    assert request.full_steps == full_steps, request.fallback_counts()
    assert 2 < len(full_steps) < STEPS
    cached = [step for step in range(STEPS) if step not in full_steps]
    assert any(not torch.equal(a, b) for step in cached for a, b in zip(outputs[step], expected[step], strict=True))
    for watcher, once in zip(watchers, plain.runs, strict=True):
        assert len(watcher.outputs) == STEPS
        in_full_steps = {name: runs * len(full_steps) for name, runs in once.items()}
        assert watcher.runs == in_full_steps, f"{watcher.unit.name} worked in a cached step"
        check_forecasts(recipe, watcher, full_steps)

    handle.disable()
    again = sample(model, calls)
    assert all(torch.equal(a, b) for past, now in zip(expected, again, strict=True)
               for a, b in zip(past, now, strict=True))  # fmt: skip


def full_steps_for(recipe: Recipe, first: Watcher) -> list[int]:
    """Return the full steps of the recipe's schedule, from the recorded inputs of the first module."""
    if recipe.interval is not None:
        return [0, *range(1, STEPS, recipe.interval)]
    past, full, spent = Past(), [], 0.0
    for step in range(STEPS):
        present = first.inputs[step][0]
        if len(full) >= 2:
            spent += input_error(recipe, past, STEPS - step, present)
        if len(full) < 2 or spent > recipe.threshold:
            past.positions.insert(0, STEPS - step)
            past.inputs.insert(0, present)
            full, spent = [*full, step], 0.0
    return full


def check_forecasts(recipe: Recipe, watcher: Watcher, full_steps: list[int]) -> None:
    for stream in range(len(watcher.outputs[0])):
        past = Past()
        source = stream if stream < len(watcher.inputs[0]) and watcher.inputs[0][stream] is not None else 0
        for step in range(STEPS):
            present, output = watcher.inputs[step][source], watcher.outputs[step][stream]
            if output is None:
                continue
            if step in full_steps:
                past.positions.insert(0, STEPS - step)
                past.inputs.insert(0, present)
                past.outputs.insert(0, output)
            else:
                error = relative_error(output, forecast(recipe, past, STEPS - step, present))
                assert error < 1e-4, f"{watcher.unit.name}, output {stream}, step {step}"


def test_only_a_class_whose_pipeline_makes_one_sample_per_call_packs_its_samples() -> None:
    """Its samples form one sequence without a batch, and its norms include all of them."""
    assert {family.class_name for family in PACKED} == {"Cosmos3OmniTransformer"}


@pytest.mark.parametrize("family", rows_of([family for family in FAMILIES if family not in PACKED]))
def test_a_sample_does_not_depend_on_its_batch(family: Family) -> None:
    """The second of two samples alone has the same outputs, with forecasts of the second order at fixed steps."""
    model = family.model()
    calls = along(family, model, STEPS)
    rows = family.size.batch
    handle = relcache.enable(
        model, forecaster=relcache.Relational(2), schedule=relcache.Plan([0, 1, 4, 6]), num_inference_steps=STEPS
    )

    def alone(value: Any, axis: int | None = 0) -> Any:
        if axis is None:
            return value
        if isinstance(value, Tensor):
            return value.narrow(axis, 1, 1).clone() if value.ndim > axis and value.shape[axis] == rows else value
        if isinstance(value, dict):
            return {name: alone(entry, axis) for name, entry in value.items()}
        if not isinstance(value, (list, tuple)):
            return value
        batched = all(isinstance(entry, Tensor) and entry.ndim and entry.shape[0] == rows for entry in value)
        if isinstance(value, list) and len(value) == rows and not batched:
            return value[1:2]
        return type(value)(alone(entry, axis) for entry in value)

    def alone_in(call: dict[str, Any]) -> dict[str, Any]:
        return {name: alone(value, family.batch_axis.get(name, 0)) for name, value in call.items()}

    together = sample(model, calls)
    apart = sample(model, [alone_in(call) for call in calls])
    assert len(request_of(handle).full_steps) == 4
    for step in range(STEPS):
        for both, one in zip(together[step][-len(apart[step]) :], apart[step], strict=True):
            mine = both[1:2] if both.shape[0] == rows else both
            assert relative_error(mine, one) < 1e-4, f"step {step}"


@pytest.mark.parametrize("family", TABLE)
def test_the_estimate_is_the_size_of_the_cache(family: Family) -> None:
    model = family.model()
    handle = relcache.enable(model, RFC(2, threshold=1e-9))
    size = family.size
    estimate = handle.estimate(size.height, width=size.width, frames=size.frames, batch=size.batch, text=size.text)
    sample(model, along(family, model, 4))
    assert abs(estimate - handle.report().cache_bytes) <= 0.05 * handle.report().cache_bytes


def transformer_classes() -> list[str]:
    """Return the names of the transformers of the installed diffusers."""
    named = [name for name in dir(diffusers) if re.search(r"(Transformer(1D|2D|3D)?|DiT(2D)?)(Model)?$", name)]
    return [name for name in named if not name.endswith("ControlNetTransformer3DModel")]


def test_every_transformer_of_diffusers_has_a_spec_or_a_reason() -> None:
    """A new class of a later diffusers fails here until it has a spec or a reason."""
    known = {spec.class_name for spec in SPECS} | set(UNSUPPORTED)
    assert sorted(set(transformer_classes()) - known) == []


def test_every_spec_is_in_the_table() -> None:
    assert {spec.class_name for spec in SPECS} == {family.class_name for family in FAMILIES}


def test_every_spec_names_a_class_of_diffusers_and_its_arguments() -> None:
    present = [spec for spec in SPECS if hasattr(diffusers, spec.class_name)]
    assert len(present) == len(SPECS) or Version(diffusers.__version__) < Version("0.42")
    for spec in present:
        arguments = set(inspect.signature(getattr(diffusers, spec.class_name).forward).parameters)
        named = {*spec.conditioning, spec.timestep, *([spec.sample] if spec.sample else [])}
        assert named <= arguments, spec.class_name


def test_a_reason_stands_only_for_what_has_no_spec() -> None:
    assert set(UNSUPPORTED) & {spec.class_name for spec in SPECS} == set()
    assert all(isinstance(spec, ModelSpec) and spec.inputs for spec in SPECS)
    assert Size().batch == 1
