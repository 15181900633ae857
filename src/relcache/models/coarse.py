"""Units coarser than modules: whole blocks, or a run of blocks from the first to the last.

Knows specs and shape-only forwards, and nothing of caching. One shape-only forward finds the streams of features of the
blocks, so no family lists them. A stream is an argument that the block returns with the same shape and passes on to the
next block.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relcache.models.inputs import Size
from relcache.models.patterns import block_numbers
from relcache.models.spec import Layout, ModelSpec, Part
from relcache.shapes.meta import without_values

Granularity = Literal["module", "block", "stack"]
BATCH = 2
SIZES = ((12, 8, 3, 13), (4, 6, 4, 5), (4, 6, 3, 5), (8, 16, 2, 13))  # tried in order, until a call succeeds

# The coarse specs by model, because each takes a copy of the model and a forward.
_known: weakref.WeakKeyDictionary[nn.Module, dict[tuple[ModelSpec, Granularity], ModelSpec]] = (
    weakref.WeakKeyDictionary()
)


@dataclass
class BlockCall:
    """One call of a block: its tensor arguments by name, their versions, and the returned tensors."""

    block: nn.Module
    inputs: dict[str, Tensor]
    versions: dict[str, int]
    outputs: list[Tensor | None]

    def is_intact(self, name: str) -> bool:
        """Return whether the argument `name` has not been overwritten since."""
        return self.inputs[name]._version == self.versions[name]

    def shape(self, name: str) -> torch.Size | None:
        """Return the shape of the argument `name`, None if it was not passed."""
        value = self.inputs.get(name)
        return None if value is None else value.shape


@dataclass(frozen=True)
class Blocks:
    """The blocks of one list: its pattern, the calls of its blocks in order, and their streams.

    `streams` are names of arguments in the order of the signature, `returns` the index of each in the output.
    """

    pattern: str
    calls: Sequence[BlockCall]
    streams: tuple[str, ...]
    returns: tuple[int, ...]
    layout: Layout

    def part(self, run: tuple[str, ...] = ()) -> Part:
        """Return the part that makes each block a unit, or the lists of `run` one unit."""
        return Part(self.pattern, self.streams, layout=self.layout, returns=self.returns, residual=True, run=run)

    def reaches(self, other: Blocks) -> bool:
        """Return whether the last block passes its streams unchanged to the first block of `other`."""
        same = (self.streams, self.returns, self.layout) == (other.streams, other.returns, other.layout)
        return same and all(self._passes(self.calls[-1], other.calls[0], stream) for stream in range(len(self.streams)))

    @property
    def is_run(self) -> bool:
        """Whether each block passes every stream on to the next; if not, the model may gather outputs on the way.

        A ControlNet's residual may be added to a stream between blocks, but the stream keeps its shape.
        """
        pairs = list(pairwise(self.calls))
        return all(
            all(before.shape(name) == after.shape(name) for before, after in pairs)
            and (not pairs or any(self._passes(before, after, stream) for before, after in pairs))
            for stream, name in enumerate(self.streams)
        )

    def _passes(self, before: BlockCall, after: BlockCall, stream: int) -> bool:
        return before.outputs[self.returns[stream]] is after.inputs.get(self.streams[stream])


def coarsened(spec: ModelSpec, model: nn.Module, granularity: Granularity) -> ModelSpec:
    """Return `spec` with whole blocks, or runs of blocks, instead of their modules.

    A list keeps its parts if its entries are units already, or if a block returns more than its streams or
    overwrites one. If the model gathers the outputs of blocks on the way, each block is a unit.

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
            f"the blocks of {type(model).__name__} ({', '.join(lists)}) cannot be skipped whole: they return "
            "other features than they receive; use granularity='module'"
        )
    return replace(spec, modules=tuple(modules), fine=spec)


def _calls(spec: ModelSpec, model: nn.Module, patterns: Sequence[str]) -> dict[str, list[BlockCall]]:
    """Return the calls of the blocks that each pattern names, in a forward of the first size that the model accepts."""
    side = getattr(getattr(model, "config", None), "sample_size", None)
    sizes = [Size(BATCH, *size) for size in SIZES]
    sizes += [Size(BATCH, side, side, 1, 13)] if isinstance(side, int) else []
    for size in sizes:
        inputs = spec.example(model, size)
        try:
            return without_values(partial(_record_calls, model, patterns, inputs))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"the shape-only forward that finds the blocks of {type(model).__name__} failed ({reason}); "
        "use granularity='module', or enable relcache before the model is sharded"
    )


def _record_calls(
    model: nn.Module, patterns: Sequence[str], inputs: Mapping[str, Any], copied: Callable[[Any], Any]
) -> dict[str, list[BlockCall]]:
    """Run one forward of a copy of the model, and return the calls of the blocks that each pattern names."""
    model, inputs = copied(model), copied(inputs)
    recorded: dict[str, list[BlockCall]] = {pattern: [] for pattern in patterns}
    for name, module in model.named_modules():
        pattern = next((key for key in patterns if "*" in key and block_numbers(key, name)), None)
        if pattern is None:
            continue

        def before(module: nn.Module, args: Any, kwargs: Any, calls: list[BlockCall] = recorded[pattern]) -> None:
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
            calls.append(BlockCall(module, tensors, {name: value._version for name, value in tensors.items()}, []))

        def after(module: nn.Module, args: Any, output: Any, calls: list[BlockCall] = recorded[pattern]) -> None:
            calls[-1].outputs = list(output) if isinstance(output, (tuple, list)) else [output]

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    model(**inputs)
    return recorded


def _blocks(pattern: str, parts: Sequence[Part], calls: Sequence[BlockCall]) -> Blocks | None:
    """Return the blocks of one list, None if they cannot be taken whole."""
    if not calls or len({id(call.block) for call in calls}) < len(calls):
        return None
    names: dict[int, str] = {}  # by index in the output
    for call, after in zip(calls, [*calls[1:], None], strict=True):
        continued = _streams(call, after)
        if continued is None or any(names.setdefault(index, name) != name for index, name in continued.items()):
            return None
    streams = [name for name in calls[0].inputs if name in names.values()]
    if len(streams) != len(names):
        return None
    layouts = {_layout(call.inputs[name], parts) for call in calls for name in streams if name in call.inputs}
    layout = layouts.pop()
    if layouts or layout is None:
        return None
    indices = {name: index for index, name in names.items()}
    return Blocks(pattern, calls, tuple(streams), tuple(indices[name] for name in streams), layout)


def _streams(call: BlockCall, after: BlockCall | None) -> dict[int, str] | None:
    """Map the index of each output to the argument that it continues; return None if an output continues none."""
    continued: dict[int, str] = {}
    for index, output in enumerate(call.outputs):
        if output is None:
            continue
        if not isinstance(output, Tensor):
            return None
        alike = [
            name
            for name, value in call.inputs.items()
            if value.shape == output.shape and value.dtype == output.dtype and name not in continued.values()
        ]
        passed = [name for name in alike if after is not None and after.inputs.get(name) is output]
        if not alike or not call.is_intact((passed or alike)[0]):
            return None
        continued[index] = (passed or alike)[0]
    return continued


def _layout(features: Tensor, parts: Sequence[Part]) -> Layout | None:
    """Return the layout of a block's features, None if it is unknown."""
    inner = {part.layout for part in parts}
    if features.shape[0] == BATCH:
        return "rows"
    if features.ndim > 2 and features.shape[1] == BATCH:
        return "tokens first"
    if "packed" in inner:
        return "packed"
    return "folded" if "folded" in inner and features.shape[0] % BATCH == 0 else None
