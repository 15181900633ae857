"""The modules that are cached in a family of transformers, as data. Knows nothing of forecasters or the session.

A spec names modules by patterns and says how to call a forward. It finds its class by name and imports no model class;
a subclass has the spec of its nearest known ancestor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from relcache.checks import check_choice, nearest
from relcache.models.inputs import Inputs, Size
from relcache.models.padding import Padding
from relcache.models.patterns import block_numbers, check_argument, modules_like

Layout = Literal["rows", "folded", "tokens first", "packed"]


@dataclass(frozen=True)
class Part:
    """One kind of unit, which is computed or forecast in one piece.

    A plain unit is one module with one stream of features: write its pattern alone, as a string. `joint` makes the part
    of one module with several streams, `parallel` the part of several modules that are skipped together.

    Attributes:
        pattern: pattern of the module's name. `*` matches a block's number. A `?` at the end makes the module
            optional: some configurations of the class have none.
        streams: names of the arguments that hold the input of each output, in the order of the outputs; () for the
            first argument alone.
        entries: names below `pattern` of the modules that read a parallel unit's input, in the order of the calls; a
            `?` at the end as above.
        exit: name below `pattern` of the module that returns a parallel unit's output.
        layout: the dimension of the features that holds the samples. "rows": the first is the batch. "folded": the
            first is the batch times another length, the samples outermost. "tokens first": the second is the batch.
            "packed": there is no batch, and the tensor counts as one sample.
        calls: how often a forward calls the module, each time with other features; each call is a unit.
        residual: whether to forecast the output minus the input, as for whole blocks.
        returns: the index of each stream in the output, if it differs from the order of `streams`.
        run: patterns of lists of blocks that together are one unit, from the first block to the last; each block
            receives the streams that the previous block returned.

    Raises:
        ValueError: entries without an exit, an exit without entries, an unknown layout, no calls.
    """

    pattern: str
    streams: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    exit: str = ""
    layout: Layout = "rows"
    calls: int = 1
    residual: bool = False
    returns: tuple[int, ...] = ()
    run: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.calls < 1:
            raise ValueError(f"a forward calls {self.pattern} at least once, got calls={self.calls!r}")
        if bool(self.entries) != bool(self.exit):
            raise ValueError(
                f"a parallel unit has both entries and an exit; {self.pattern} has entries={self.entries!r} and "
                f"exit={self.exit!r}"
            )
        check_choice(f"the layout of {self.pattern}", self.layout, Layout)


def joint(pattern: str, *streams: str, layout: Layout = "rows") -> Part:
    """Return the part of joint attention, with an input and an output for each of the arguments `streams`."""
    return Part(pattern, streams or ("hidden_states", "encoder_hidden_states"), layout=layout)


def parallel(pattern: str, entries: tuple[str, ...], exit: str, layout: Layout = "rows") -> Part:
    """Return the part of a parallel block, or of a feed-forward that the block writes out.

    The `entries` read one input, the `exit` returns the output. On a cached step each entry returns its features with
    no tokens; elementwise work and concatenation of channels between them cost nothing. The exit returns the forecast.
    """
    return Part(pattern, entries=entries, exit=exit, layout=layout)


class Unit(NamedTuple):
    """One cached piece of a model, with its modules by their names in the model.

    The last of `modules` returns the output; the modules before it are the entries of a parallel unit. `turn` counts
    the calls of a module in one forward, from 0.
    """

    name: str
    part: Part
    modules: dict[str, nn.Module]
    turn: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """One transformer family.

    Attributes:
        class_name: name of the transformer class.
        modules: modules to cache, in the order of computation in a block: patterns of plain modules as strings,
            the rest as `Part`. A plain module takes its features as its first argument and returns one tensor of
            features, before gate and residual.
        conditioning: names of the arguments of `forward` that differ between guidance branches.
        timestep: name of the argument of `forward` that holds the timestep.
        time_runs: -1 if the timestep falls during sampling, 1 if it rises.
        sample: name of the argument of `forward` that holds the noisy sample; "" for its first argument.
        inputs: makes the arguments of one forward from the model's config and a `Size`, on the default device.
            `Handle.estimate` and `relcache.inspect` call the model with them; `models/inputs.py` has recipes.
        text: tokens of text that the family's pipeline passes by default.
        fine: for a spec of whole blocks, the spec of modules that it was made from.
        padding: marks the padding of streams that are padded to the longest prompt of the batch, so that a sample's
            norms and errors do not depend on the other samples. Each entry is a pattern of "unit:stream", such as
            `"layers*:*"`, and a function of `models/padding.py`.
        pipelines: pipelines of diffusers that the tests run end to end with a small model of the family. For every
            spec of relcache's own, the tests also compare a small model with the plain equations.

    Raises:
        ValueError: no patterns, or a direction of time other than -1 and 1.
    """

    class_name: str
    modules: tuple[str | Part, ...]
    conditioning: tuple[str, ...] = ()
    timestep: str = "timestep"
    time_runs: int = -1
    sample: str = ""
    inputs: Inputs | None = field(default=None, compare=False)
    text: int = 0
    padding: tuple[tuple[str, Padding], ...] = field(default=(), compare=False)
    pipelines: tuple[str, ...] = ()
    fine: ModelSpec | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError(f"the spec of {self.class_name} names no modules")
        for name in ("modules", "conditioning"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} of the spec of {self.class_name} is a tuple, got {getattr(self, name)!r}")
        for module in self.modules:
            if not isinstance(module, (str, Part)):
                raise ValueError(f"modules of the spec of {self.class_name} are patterns or Parts, got {module!r}")
        if self.time_runs not in (-1, 1):
            raise ValueError(f"time_runs is -1 if the timestep falls or 1 if it rises, got {self.time_runs!r}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """`modules`, each as a `Part`."""
        return tuple(Part(module) if isinstance(module, str) else module for module in self.modules)

    def example(self, model: nn.Module, size: Size) -> dict[str, Any]:
        """Return the arguments of one forward of `size`, on the CPU, with random features in the model's dtype.

        Raises:
            ValueError: the spec has no `inputs`.
        """
        if self.inputs is None:
            raise ValueError(
                f"the spec of {self.class_name} does not say how to call the model: give it inputs=, a function of the "
                "model's config and a relcache.Size"
            )
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            inputs = self.inputs(getattr(model, "config", None), size)
        weights = (value.dtype for value in model.parameters() if value.is_floating_point())
        dtype = getattr(model, "dtype", None) or next(weights, torch.float32)

        def cast(value: Tensor) -> Tensor:
            return value.to(dtype) if value.is_floating_point() and value.ndim > 1 else value

        return tree_map_only(Tensor, cast, inputs)

    def valid_tokens(self, arguments: Mapping[str, Any], name: str, tokens: int) -> Tensor | None:
        """Return the tokens that count in the stream `name`, "unit:stream", of a call: (batch, tokens), bool.

        Return None if all of them count.
        """
        for pattern, padding in self.padding:
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}"):
                return padding(arguments, tokens)
        return None

    def units(self, model: nn.Module) -> list[Unit]:
        """Return the units of `model` to cache, in the order of computation: by stack, then by block.

        Raises:
            ValueError: a pattern matches no module, or two match one. The message names the nearest modules.
        """
        modules = {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
        stacks = list(dict.fromkeys(_stack(part) for part in self.parts))
        sortable: list[tuple[tuple[int, tuple[int, ...], int], Unit]] = []
        for index, part in enumerate(self.parts):
            matches = _matches(part.pattern, modules)
            if not matches and not part.pattern.endswith("?"):
                raise ValueError(self._missing(part.pattern, model))
            stack = stacks.index(_stack(part))
            if part.run:
                sortable.append(((stack, (0,), index), _run(part, modules)))
                continue
            for numbers, name in matches:
                units = _calls(_unit(self.class_name, part, name, modules))
                sortable += [((stack, numbers, index), unit) for unit in units]
        if not sortable:
            raise ValueError(self._missing(self.parts[0].pattern, model))
        ordered = [unit for _, unit in sorted(sortable, key=lambda entry: entry[0])]
        _check_disjoint(self.class_name, ordered)
        return ordered

    def _missing(self, pattern: str, model: nn.Module) -> str:
        return (
            f"the spec of {self.class_name} looks for modules named {pattern!r} and {type(model).__name__} has none; "
            f"it has {modules_like(pattern, model)}"
        )

    def check_arguments(self, model: nn.Module, units: Iterable[Unit]) -> None:
        """Check that the names in the spec are arguments of the forwards of `model` and of its `units`.

        Raises:
            ValueError: one is not; the message names the nearest argument.
        """
        for name in (*self.conditioning, self.timestep, *([self.sample] if self.sample else [])):
            check_argument(self.class_name, type(model).forward, name, type(model).__name__)
        for unit in units:
            first = next(iter(unit.modules.values()))
            for name in unit.part.streams:
                check_argument(self.class_name, first.forward, name, unit.name)


def spec_for(model: nn.Module, specs: Iterable[ModelSpec], unsupported: Mapping[str, str] | None = None) -> ModelSpec:
    """Return the spec of `model`'s class, or of its nearest ancestor that has one.

    Raises:
        ValueError: no spec; the message names the class and the nearest known ones.
    """
    by_name = {spec.class_name: spec for spec in specs}
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in by_name:
            return by_name[ancestor.__name__]
    name = type(model).__name__
    if unsupported and name in unsupported:
        raise ValueError(f"relcache does not cache {name}: {unsupported[name]}")
    near = nearest(name, by_name, most=3, cutoff=0.3)
    raise ValueError(
        f"relcache has no spec for {name}; it knows {len(by_name)} transformers, the nearest being "
        f"{', '.join(near) or 'none'} (`relcache models` lists them). "
        "Describe it with relcache.ModelSpec(...) and pass that as spec=; relcache.inspect(model) suggests one"
    )


def describe(spec: ModelSpec) -> dict[str, list[str]]:
    """Describe the cached modules in a block of each stack, by the stack's name, with notes on unusual modules."""
    stacks: dict[str, list[str]] = {}
    for part in spec.parts:
        stack, _, name = part.pattern.removesuffix("?").partition(".*")
        name = "+".join([piece for piece in (name[1:], *part.entries, part.exit) if piece]) or stack
        notes = [f"{len(part.streams)} streams"] if len(part.streams) > 1 else []
        notes += ["in parallel"] if part.entries else []
        notes += [f"{part.calls} calls"] if part.calls > 1 else []
        notes += ["optional"] if part.pattern.endswith("?") else []
        stacks.setdefault(stack, []).append(f"{name} ({', '.join(notes)})" if notes else name)
    return stacks


def streams(spec: ModelSpec) -> int:
    """Return the most streams that one unit of the family has."""
    return max(len(part.streams) or 1 for part in spec.parts)


def _stack(part: Part) -> str:
    return part.pattern.split("*")[0]


def _matches(pattern: str, modules: Iterable[str]) -> list[tuple[tuple[int, ...], str]]:
    """Return the numbers and the name of each module that matches `pattern`."""
    return [(numbers, name) for name in modules if (numbers := block_numbers(pattern, name)) is not None]


def _run(part: Part, modules: Mapping[str, nn.Module]) -> Unit:
    """Return the unit of a run of blocks."""
    names = [name for pattern in part.run for _, name in _matches(pattern, modules)]
    run = "+".join(pattern.removesuffix(".*") for pattern in part.run)
    return Unit(run, part, {name: modules[name] for name in names})


def _unit(class_name: str, part: Part, name: str, modules: Mapping[str, nn.Module]) -> Unit:
    """Return the unit of the module `name`; for a parallel unit, `name` is the block."""
    if not part.entries:
        return Unit(name, part, {name: modules[name]})
    inner = {}
    for piece in (*part.entries, part.exit):
        full = f"{name}.{piece.removesuffix('?')}"
        if full in modules:
            inner[full] = modules[full]
        elif not piece.endswith("?"):
            raise ValueError(
                f"the spec of {class_name} looks for {piece!r} in {name}, which has "
                f"{', '.join(child for child, _ in modules[name].named_children()) or 'no modules'}"
            )
    return Unit(f"{name}.{'+'.join(module.removeprefix(name)[1:] for module in inner)}", part, inner)


def _calls(unit: Unit) -> list[Unit]:
    """Return a unit for each call of the module in one forward."""
    if unit.part.calls == 1:
        return [unit]
    return [unit._replace(name=f"{unit.name}#{turn + 1}", turn=turn) for turn in range(unit.part.calls)]


def _check_disjoint(class_name: str, units: Iterable[Unit]) -> None:
    """Raise ValueError if two units have the same module, or one has a module inside another's."""
    owners: dict[str, str] = {}
    for unit in units:
        for name in unit.modules if not unit.turn else ():
            if name in owners:
                raise ValueError(f"the spec of {class_name} names {name} twice: {owners[name]}, {unit.name}")
            owners[name] = unit.name
    for name, owner in owners.items():
        above = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        outer = next((owners[other] for other in above if other in owners and owners[other] != owner), None)
        if outer is not None:
            raise ValueError(f"the spec of {class_name} names {name}, which is inside {outer}")
