"""Where in a model the modules are. Knows nothing of forecasters, schedules or the session.

A family of transformers is data: patterns for module names, and how a forward of it is called. The class is matched by
its name, so no model class is imported, and a subclass is matched by the name of its nearest known ancestor.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from relcache.models.padding import Padding

Layout = Literal["rows", "folded", "tokens first", "packed"]


@dataclass(frozen=True)
class Part:
    """One kind of unit: what is computed, or forecast, in one piece.

    A plain unit is one module with one stream of features: write its pattern alone, as a string. `Joint` is one module
    with several streams, `Parallel` several modules that are skipped together.

    Attributes:
        pattern: pattern of the module's name. `*` stands for a block's number; a `?` at the end says that some
            configurations of the class have no such module.
        streams: names of the arguments that hold the input of each output, in the order of the outputs; () for the
            first argument alone.
        entries: of a parallel unit, the names below `pattern` of the modules that read its input, the first called
            first; a `?` at the end as above.
        exit: of a parallel unit, the name below `pattern` of the module that returns its output.
        layout: how samples lie in the features: "rows", the first dimension is the batch; "folded", the first
            dimension is the batch times something, the samples outermost; "tokens first", the second dimension is the
            batch; "packed", there is no batch, and the tensor counts as one sample.
        calls: how often a forward calls the module, on other features each time: a unit for each call.
        residual: whether what is forecast is the output minus the input, as of whole blocks.
        returns: the place of each stream in the output, where they do not come in the order of `streams`.
        run: patterns of lists of blocks that are one unit together, from the first block to the last; each block is
            given the streams that the one before returned.

    Raises:
        ValueError: entries without an exit or the other way round, an unknown layout, no calls.
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
        if self.layout not in get_args(Layout):
            raise ValueError(f"the layout of {self.pattern} is one of {', '.join(get_args(Layout))}, "
                             f"got {self.layout!r}")  # fmt: skip


def joint(pattern: str, *streams: str, layout: Layout = "rows") -> Part:
    """Joint attention: one computation, an input and an output for each of `streams` (names of its arguments)."""
    return Part(pattern, streams or ("hidden_states", "encoder_hidden_states"), layout=layout)


def parallel(pattern: str, entries: tuple[str, ...], exit: str, layout: Layout = "rows") -> Part:
    """A parallel block, or a feed-forward written out: `entries` read one input, `exit` returns the output.

    On a cached step each entry returns its features with no tokens, which costs nothing and passes through whatever
    elementwise work and concatenation of channels lies between, and the exit returns the forecast.
    """
    return Part(pattern, entries=entries, exit=exit, layout=layout)


class Unit(NamedTuple):
    """One piece whose output is cached: its name, what kind it is, and its modules by their names in the model.

    The last of `modules` returns the output; those before it are the entries of a parallel unit. `turn` counts the
    calls of modules that a forward calls several times, from 0.
    """

    name: str
    part: Part
    modules: dict[str, nn.Module]
    turn: int = 0


@dataclass(frozen=True)
class Size:
    """Size of a call of a transformer: samples, height, width and frames of the latents, tokens of text."""

    batch: int = 1
    height: int = 8
    width: int = 8
    frames: int = 1
    text: int = 16


@dataclass(frozen=True)
class ModelSpec:
    """One transformer family.

    Attributes:
        class_name: name of the transformer class.
        modules: what to cache, in the order in which a block computes it: patterns of plain modules as strings, the
            rest as `Part`. A plain module takes its features as its first argument and returns one tensor of
            features, before gate and residual.
        conditioning: names of the arguments of `forward` that tell guidance branches apart.
        timestep: name of the argument of `forward` that holds the timestep.
        time_runs: -1 where the timestep falls as sampling goes on, 1 where it rises.
        sample: name of the argument of `forward` that holds the noisy sample; "" for its first argument.
        inputs: makes the arguments of one forward from the model's config and a `Size`, on the default device; what
            `Handle.estimate` and `relcache.inspect` call the model with.
        text: tokens of text that the family's pipeline gives by default.
        fine: of a spec of whole blocks, the spec of modules that it was made from.
        padding: for streams that are padded to the longest prompt of the batch, which tokens count, so that norms and
            errors of a sample do not depend on its mates: pairs of a pattern of a unit's and a stream's names, such as
            `"layers*:*"`, and a function of the arguments of `forward` and the stream's number of tokens
            (`models/padding.py`).
        pipelines: pipelines of diffusers that the tests run end to end with a small model of the family. A small model
            by itself is held against the plain equations for every spec of relcache's own.

    Raises:
        ValueError: no patterns, or a direction of time other than -1 and 1.
    """

    class_name: str
    modules: tuple[str | Part, ...]
    conditioning: tuple[str, ...] = ()
    timestep: str = "timestep"
    time_runs: int = -1
    sample: str = ""
    inputs: Callable[[Any, Size], dict[str, Any]] | None = field(default=None, compare=False)
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
            raise ValueError(f"time_runs is -1 (the timestep falls) or 1 (it rises), got {self.time_runs!r}")

    @property
    def parts(self) -> tuple[Part, ...]:
        """`modules`, each as a `Part`."""
        return tuple(Part(module) if isinstance(module, str) else module for module in self.modules)

    def example(self, model: nn.Module, size: Size) -> dict[str, Any]:
        """Arguments of one forward of `size`, on the CPU, of random features in the model's dtype.

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
        return tree_map_only(Tensor, lambda value: value.to(dtype) if _is_features(value) else value, inputs)

    def valid_tokens(self, arguments: Mapping[str, Any], name: str, tokens: int) -> Tensor | None:
        """Which tokens count of the stream `name`, "unit:stream", in a call with `arguments`: bools, (batch, tokens);
        None if all do."""
        for pattern, padding in self.padding:
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}"):
                return padding(arguments, tokens)
        return None

    def units(self, model: nn.Module) -> list[Unit]:
        """The units of `model` to cache: stack by stack, block by block, in the order in which they are computed.

        Raises:
            ValueError: a pattern matches no module; the message names it and the nearest modules there are.
        """
        names = {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
        stacks = list(dict.fromkeys(_stack(part) for part in self.parts))
        found: list[tuple[int, tuple[int, ...], int, Unit]] = []
        for place, part in enumerate(self.parts):
            hits = [(numbers, name) for name in names if (numbers := _match(part.pattern, name)) is not None]
            if not hits and not part.pattern.endswith("?"):
                raise ValueError(_missing(self.class_name, part.pattern, model))
            if part.run:
                run = [name for pattern in part.run for name in names if _match(pattern, name) is not None]
                name = "+".join(pattern.removesuffix(".*") for pattern in part.run)
                unit = Unit(name, part, {name: names[name] for name in run})
                found.append((stacks.index(_stack(part)), (0,), place, unit))
                continue
            for numbers, name in hits:
                unit = _unit(self.class_name, part, name, names)
                for turn in range(part.calls):
                    called = unit._replace(name=f"{unit.name}#{turn + 1}", turn=turn) if part.calls > 1 else unit
                    found.append((stacks.index(_stack(part)), numbers, place, called))
        if not found:
            raise ValueError(_missing(self.class_name, self.parts[0].pattern, model))
        units = [unit for *_, unit in sorted(found, key=lambda entry: entry[:3])]
        owners: dict[str, str] = {}
        for unit in units:
            for name in unit.modules if not unit.turn else ():
                if name in owners:
                    raise ValueError(f"the spec of {self.class_name} names {name} twice: {owners[name]}, {unit.name}")
                owners[name] = unit.name
        for name, owner in owners.items():
            above = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
            outer = next((owners[other] for other in above if other in owners and owners[other] != owner), None)
            if outer is not None:
                raise ValueError(f"the spec of {self.class_name} names {name}, which lies inside {outer}")
        return units

    def check_arguments(self, model: nn.Module, units: Iterable[Unit]) -> None:
        """See that the names in the spec are arguments of the forwards of `model` and of its `units`.

        Raises:
            ValueError: one is not; the message names the nearest that there are.
        """
        for name in (*self.conditioning, self.timestep, *([self.sample] if self.sample else [])):
            _check_argument(self.class_name, type(model).forward, name, type(model).__name__)
        for unit in units:
            first = next(iter(unit.modules.values()))
            for name in unit.part.streams:
                _check_argument(self.class_name, first.forward, name, unit.name)


def spec_for(model: nn.Module, specs: Iterable[ModelSpec], unsupported: Mapping[str, str] | None = None) -> ModelSpec:
    """The spec of `model`'s class, or of its nearest ancestor that has one.

    Raises:
        ValueError: no spec; the message names the class and those that are nearest.
    """
    by_name = {spec.class_name: spec for spec in specs}
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in by_name:
            return by_name[ancestor.__name__]
    name = type(model).__name__
    if unsupported and name in unsupported:
        raise ValueError(f"relcache does not cache {name}: {unsupported[name]}")
    near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.3)
    raise ValueError(
        f"relcache has no spec for {name}; it knows {len(by_name)} transformers, of which "
        f"{', '.join(near) if near else 'none'} come nearest (`relcache models` lists them). "
        "Describe it with relcache.ModelSpec(...) and pass that as spec=; relcache.inspect(model) suggests one"
    )


def _is_features(value: Tensor) -> bool:
    return value.is_floating_point() and value.ndim > 1


def describe(spec: ModelSpec) -> dict[str, list[str]]:
    """What is cached in a block of each stack, by the stack's name: module names, with what is unusual about them."""
    stacks: dict[str, list[str]] = {}
    for part in spec.parts:
        stack, _, name = part.pattern.removesuffix("?").partition(".*")
        name = "+".join([piece for piece in (name[1:], *part.entries, part.exit) if piece]) or stack
        notes = [f"{len(part.streams)} streams"] if len(part.streams) > 1 else []
        notes += ["in parallel"] if part.entries else []
        notes += [f"{part.calls} calls"] if part.calls > 1 else []
        notes += ["where there is one"] if part.pattern.endswith("?") else []
        stacks.setdefault(stack, []).append(f"{name} ({', '.join(notes)})" if notes else name)
    return stacks


def streams(spec: ModelSpec) -> int:
    """The most streams that one unit of the family has."""
    return max(len(part.streams) or 1 for part in spec.parts)


def grid_ids(*sizes: int) -> Tensor:
    """Coordinates of each cell of a grid, the last axis moving fastest: (cells, len(sizes)), float32."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).float()


def _check_argument(class_name: str, forward: Callable[..., Any], name: str, owner: str) -> None:
    parameters = inspect.signature(forward).parameters
    if name in parameters or any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
        return
    known = [key for key in parameters if key != "self"]
    near = difflib.get_close_matches(name, known, n=1)
    raise ValueError(
        f"the spec of {class_name} names the argument {name!r}, which {owner} does not take"
        f"{f'; did you mean {near[0]!r}?' if near else f'; it takes {known}'}"
    )


def first_argument(forward: Callable[..., Any]) -> str:
    """Name of the first argument of a bound `forward`, "" if it has none."""
    return next(iter(inspect.signature(forward).parameters), "")


def argument_place(forward: Callable[..., Any], name: str) -> int | None:
    """Place among the positional arguments of a bound `forward` of the argument `name`."""
    parameters = inspect.signature(forward).parameters
    positional = [key for key, value in parameters.items() if value.kind in (value.POSITIONAL_OR_KEYWORD,
                                                                             value.POSITIONAL_ONLY)]  # fmt: skip
    return positional.index(name) if name in positional else None


def _stack(part: Part) -> str:
    return part.pattern.split("*")[0]


def _match(pattern: str, name: str) -> tuple[int, ...] | None:
    pieces = pattern.removesuffix("?").split("*")
    match = re.fullmatch(r"(\d+)".join(re.escape(piece) for piece in pieces), name)
    return tuple(int(number) for number in match.groups()) if match else None


def _unit(class_name: str, part: Part, name: str, names: dict[str, nn.Module]) -> Unit:
    if not part.entries:
        return Unit(name, part, {name: names[name]})
    below = (*part.entries, part.exit)
    modules = {}
    for piece in below:
        full = f"{name}.{piece.removesuffix('?')}"
        if full not in names:
            if piece.endswith("?"):
                continue
            raise ValueError(
                f"the spec of {class_name} looks for {piece!r} in {name}, which has "
                f"{', '.join(child for child, _ in names[name].named_children()) or 'no modules'}"
            )
        modules[full] = names[full]
    return Unit(f"{name}.{'+'.join(module.removeprefix(name)[1:] for module in modules)}", part, modules)


def _missing(class_name: str, pattern: str, model: nn.Module) -> str:
    shown = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, _ in model.named_modules() if name})
    near = difflib.get_close_matches(pattern, shown, n=5, cutoff=0.3) or shown[:5]
    return (
        f"the spec of {class_name} looks for modules named {pattern!r} and {type(model).__name__} has none; it has "
        f"{', '.join(near) if near else 'no modules at all'}"
    )
