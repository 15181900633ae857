"""Coarser units than modules: whole blocks, or a run of blocks from the first to the last.

Knows specs and forwards without values; nothing of caching. What a block's streams of features are is not written down
for each family but read off one forward in which only shapes matter: a stream is an argument that comes back with the
same shape, and that the next block is given.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relcache.models.inputs import Size
from relcache.models.spec import Layout, ModelSpec, Part
from relcache.shapes.meta import without_values

Granularity = Literal["module", "block", "stack"]
BATCH = 2
SIZES = ((12, 8, 3, 13), (4, 6, 4, 5), (4, 6, 3, 5), (8, 16, 2, 13))  # the first that a model can be called with


# What was found of a model, as finding it takes a copy of the model and a forward.
_known: weakref.WeakKeyDictionary[nn.Module, dict[tuple[ModelSpec, Granularity], ModelSpec]] = (
    weakref.WeakKeyDictionary()
)


@dataclass
class Call:
    """One call of a block: the tensors among its arguments by name, with their versions, and those it returned."""

    block: nn.Module
    inputs: dict[str, Tensor]
    versions: dict[str, int]
    outputs: list[Tensor | None]

    def is_intact(self, name: str) -> bool:
        """Whether nobody has written into the argument `name` until now."""
        return self.inputs[name]._version == self.versions[name]


@dataclass(frozen=True)
class Blocks:
    """The blocks of one list: its pattern, the calls of its blocks in order, and their streams.

    `streams` are names of arguments in the order of the signature, `returns` the place in the output of each.
    """

    pattern: str
    calls: Sequence[Call]
    streams: tuple[str, ...]
    returns: tuple[int, ...]
    layout: Layout

    def part(self, run: tuple[str, ...] = ()) -> Part:
        """Each block as a unit, or all of them as one."""
        return Part(self.pattern, self.streams, layout=self.layout, returns=self.returns, residual=True, run=run)

    def reaches(self, other: Blocks) -> bool:
        """Whether the streams of the last block are by themselves those of the first of `other`."""
        same = (self.streams, self.returns, self.layout) == (other.streams, other.returns, other.layout)
        return same and all(self.hands_on(self.calls[-1], other.calls[0], place) for place in range(len(self.streams)))

    @property
    def is_run(self) -> bool:
        """Whether every stream goes from one block on to the next; what does not may be gathered elsewhere.

        Something may be added to a stream on the way (a ControlNet's residual), but it keeps its shape.
        """
        pairs = list(zip(self.calls, self.calls[1:], strict=False))
        places = range(len(self.streams))
        keeps = all(
            self.shape(before, place) == self.shape(after, place) for before, after in pairs for place in places
        )
        return keeps and all(not pairs or any(self.hands_on(*pair, place) for pair in pairs) for place in places)

    def shape(self, call: Call, place: int) -> torch.Size | None:
        """Shape of a stream in a call."""
        value = call.inputs.get(self.streams[place])
        return None if value is None else value.shape

    def hands_on(self, before: Call, after: Call, place: int) -> bool:
        """Whether a stream's output of one block is what the next gets."""
        return before.outputs[self.returns[place]] is after.inputs.get(self.streams[place])


def coarsened(spec: ModelSpec, model: nn.Module, granularity: Granularity) -> ModelSpec:
    """`spec` with whole blocks, or runs of blocks, in place of their modules.

    A list whose blocks cannot be taken whole keeps what it had (a block that returns something else than its streams,
    or writes into them), as does a list of modules; of one whose outputs are gathered on the way the blocks are taken
    one by one.

    Raises:
        ValueError: no list of the model has blocks that can be taken whole, or the spec has no `inputs`.
    """
    if granularity == "module":
        return spec
    known = _known.setdefault(model, {})
    if (spec, granularity) not in known:
        known[spec, granularity] = _coarsened(spec, model, granularity)
    return known[spec, granularity]


def _coarsened(spec: ModelSpec, model: nn.Module, granularity: Granularity) -> ModelSpec:
    lists: dict[str, list[Part]] = {}
    for part in spec.parts:
        head, star, _ = part.pattern.partition("*")
        lists.setdefault(head + star if star else part.pattern, []).append(part)
    calls = _calls(spec, model, list(lists))
    modules: list[str | Part] = []
    last: Blocks | None = None
    for pattern, parts in lists.items():
        blocks = _blocks(pattern, parts, calls[pattern])
        if blocks is None or any(part.pattern.removesuffix("?") == pattern and not part.entries for part in parts):
            modules += parts
            blocks = None
        elif granularity == "block" or not blocks.is_run:
            modules.append(blocks.part())
            blocks = None
        elif last is not None and isinstance(run := modules[-1], Part) and last.reaches(blocks):
            modules[-1] = replace(run, run=(*run.run, pattern))
        else:
            modules.append(blocks.part(run=(pattern,)))
        last = blocks
    if not any(isinstance(part, Part) and part.residual for part in modules):
        raise ValueError(
            f"the blocks of {type(model).__name__} ({', '.join(lists)}) cannot be skipped whole: what they return is "
            "not what they are given; use granularity='module'"
        )
    return replace(spec, modules=tuple(modules), fine=spec)


def _calls(spec: ModelSpec, model: nn.Module, patterns: Sequence[str]) -> dict[str, list[Call]]:
    """The calls of the blocks that each pattern names, in a forward of the first size that the model takes."""
    side = getattr(getattr(model, "config", None), "sample_size", None)
    sizes = [Size(BATCH, *size) for size in SIZES]
    sizes += [Size(BATCH, side, side, 1, 13)] if isinstance(side, int) else []
    for size in sizes:
        inputs = spec.example(model, size)
        try:
            return without_values(partial(_watched, model, patterns, inputs))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"to find the blocks of {type(model).__name__} a forward is made without values, and that failed ({reason}); "
        "use granularity='module', or enable relcache before the model is sharded"
    )


def _watched(
    model: nn.Module, patterns: Sequence[str], inputs: Mapping[str, Any], copied: Callable[[Any], Any]
) -> dict[str, list[Call]]:
    return _watch(copied(model), patterns, copied(inputs))


def _watch(model: nn.Module, patterns: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, list[Call]]:
    """The calls of the modules that each pattern names, in one forward of a copy of a model."""
    found: dict[str, list[Call]] = {pattern: [] for pattern in patterns}
    for name, module in model.named_modules():
        pattern = next((key for key in patterns if _is_block(name, key)), None)
        if pattern is None:
            continue

        def before(module: nn.Module, args: Any, kwargs: Any, calls: list[Call] = found[pattern]) -> None:
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
            calls.append(Call(module, tensors, {name: value._version for name, value in tensors.items()}, []))

        def after(module: nn.Module, args: Any, output: Any, calls: list[Call] = found[pattern]) -> None:
            entries = list(output) if isinstance(output, (tuple, list)) else [output]
            calls[-1].outputs = entries

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    model(**inputs)
    return found


def _is_block(name: str, pattern: str) -> bool:
    head, star, _ = pattern.partition("*")
    return bool(star) and name.startswith(head) and name[len(head) :].isdigit()


def _blocks(pattern: str, parts: Sequence[Part], calls: Sequence[Call]) -> Blocks | None:
    """The blocks of one list; None where they cannot be taken whole."""
    if not calls or len({id(call.block) for call in calls}) < len(calls):
        return None
    named = [_streams(call, after) for call, after in zip(calls, [*calls[1:], None], strict=True)]
    known: dict[int, str] = {}
    for names in named:
        if names is None:
            return None
        for place, name in names.items():
            if known.setdefault(place, name) != name:
                return None
    order = [name for name in calls[0].inputs if name in known.values()]
    if len(order) != len(known):
        return None
    places = {name: place for place, name in known.items()}
    layouts = {_layout(call.inputs[name], parts) for call in calls for name in order if name in call.inputs}
    layout = layouts.pop()
    if layouts or layout is None:
        return None
    return Blocks(pattern, calls, tuple(order), tuple(places[name] for name in order), layout)


def _streams(call: Call, after: Call | None) -> dict[int, str] | None:
    """Which argument each output of a block continues, by its place; None where one has none."""
    found: dict[int, str] = {}
    for place, output in enumerate(call.outputs):
        if output is None:
            continue
        if not isinstance(output, Tensor):
            return None
        alike = [name for name, value in call.inputs.items() if value.shape == output.shape]
        alike = [name for name in alike if name not in found.values() and call.inputs[name].dtype == output.dtype]
        passed = [name for name in alike if after is not None and after.inputs.get(name) is output]
        if not alike or not call.is_intact((passed or alike)[0]):
            return None
        found[place] = (passed or alike)[0]
    return found


def _layout(features: Tensor, parts: Sequence[Part]) -> Layout | None:
    """How the samples lie in a block's features."""
    inner = {part.layout for part in parts}
    if features.shape[0] == BATCH:
        return "rows"
    if features.ndim > 2 and features.shape[1] == BATCH:
        return "tokens first"
    if "packed" in inner:
        return "packed"
    return "folded" if "folded" in inner and features.shape[0] % BATCH == 0 else None
