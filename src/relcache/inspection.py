"""What would be cached in a model and what would not: for a first look at a family, known or new."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.models import SPECS, ModelSpec, Part, Size, spec_for
from relcache.session.components import find_transformers
from relcache.shapes.flops import Flops, count_modules
from relcache.shapes.meta import without_values

TIMESTEPS = ("timestep", "timesteps", "t", "time", "sigma")
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Row:
    """Modules of one name but for the block's number.

    Attributes:
        pattern: the name, `*` for the numbers.
        kind: "module", "joint" or "parallel" where it is cached; else the class.
        count: how many there are.
        inputs, outputs: shapes of the first one's tensors in one forward; () where it was not called.
        share: of the model's FLOPs, 0 to 1; None where no forward was made.
        parameters: of all of them.
    """

    pattern: str
    kind: str
    count: int
    inputs: Shapes
    outputs: Shapes
    share: float | None
    parameters: int

    def __str__(self) -> str:
        shapes = f"{_show(self.inputs)} -> {_show(self.outputs)}" if self.outputs else "-"
        share = "" if self.share is None else f"{self.share:7.1%}"
        return f"{self.count:4} x {self.pattern:<52} {self.kind[:24]:<24} {share}  {shapes}"


@dataclass(frozen=True)
class Inspection:
    """One transformer: `cached` are the units of its spec, `computed` what is computed at every step.

    Where there is no spec, `cached` is empty and `suggestion` holds one to begin with, in Python. `others` are the
    pipeline's other transformers, as expressions to inspect.
    """

    model: str
    cached: list[Row]
    computed: list[Row]
    suggestion: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = sum(row.share or 0.0 for row in self.cached)
        known = [f", {share:.1%} of the FLOPs"] if self.cached and self.cached[0].share is not None else [""]
        lines = [f"{self.model}: {sum(row.count for row in self.cached)} units cached{known[0]}"]
        lines += [f"  {row}" for row in self.cached]
        lines += ["computed at every step:", *(f"  {row}" for row in self.computed)]
        if self.suggestion:
            lines += ["no spec; one to begin with (see that each pattern is right):", self.suggestion]
        if self.others:
            lines.append(f"the pipeline has other transformers: inspect {' or '.join(self.others)} for them")
        return "\n".join(lines)


def inspect(
    model_or_pipe: Any,
    spec: ModelSpec | None = None,
    *,
    size: Size | None = None,
    inputs: dict[str, Any] | None = None,
) -> Inspection:
    """What would be cached in a transformer and what would not, with shapes and FLOPs of one forward.

    The forward is made on the meta device: nothing is computed, and a model of any size is looked at in moments. For a
    model without a spec the modules of its blocks are shown, and a `ModelSpec` to begin with is suggested.

    Args:
        model_or_pipe: a transformer, or a pipeline; of several transformers in it the first is looked at.
        spec: the spec to use instead of relcache's own.
        size: size of the forward; by default a small one.
        inputs: arguments of the forward, where the spec does not say how to make them. Without either there are no
            shapes and no FLOPs.

    Raises:
        TypeError: not a pipeline or transformer.
        ValueError: a spec that matches no module.
    """
    (_, model), *more = find_transformers(model_or_pipe)[0].items()
    others = tuple(f"pipe.{name}" for name, other in more if other is not model)
    if spec is None and type(model).__name__ in {known.class_name for known in SPECS}:
        spec = spec_for(model, SPECS)
    if inputs is None and spec is not None and spec.inputs is not None:
        inputs = spec.example(model, size or Size(text=spec.text))
    trace = _Trace(model, inputs)
    if spec is None:
        candidates = list(_candidates(model, trace))
        rows = [trace.row(_pattern(name), type(module).__name__, [[name]]) for name, module in _top(model, set())]
        return Inspection(type(model).__name__, [], _merge(rows), _suggest(model, candidates, inputs), others)
    units = spec.units(model)
    cached = [trace.row(_pattern(unit.name), _kind(unit.part), [list(unit.modules)]) for unit in units if not unit.turn]
    inside = {name for unit in units for name in unit.modules}
    rows = [trace.row(_pattern(name), type(module).__name__, [[name]]) for name, module in _top(model, inside)]
    rows = sorted(_merge(rows), key=lambda row: row.share or 0.0, reverse=True)
    computed = [row for row in rows if row.parameters or row.share]
    return Inspection(type(model).__name__, _merge(cached), computed, others=others)


class _Trace:
    """Shapes and FLOPs of every module in one forward on the meta device."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any] | None):
        self._modules = dict(model.named_modules())
        self.shapes: dict[str, tuple[Shapes, Shapes]] = {}
        self._flops: dict[str, int] | None = None
        self._total = 0
        if inputs is not None:
            counted = without_values(lambda copied: self._count(copied(model), copied(inputs)))
            self._total, self._flops = counted.total, counted.modules

    def _count(self, model: nn.Module, inputs: dict[str, Any]) -> Flops:
        for name, module in model.named_modules():

            def note(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                self.shapes.setdefault(name, (_shapes((args, kwargs)), _shapes(output)))

            module.register_forward_hook(note, with_kwargs=True)
        return count_modules(model, list(self._modules), (), inputs)

    def share(self, name: str) -> float | None:
        """Share of the FLOPs, None where no forward was made."""
        return None if self._flops is None else self._flops[name] / max(self._total, 1)

    def row(self, pattern: str, kind: str, groups: list[list[str]]) -> Row:
        """A row for units of which each has the modules of one group."""
        names = [name for group in groups for name in group]
        shares = [share for name in names if (share := self.share(name)) is not None]
        inputs = self.shapes.get(groups[0][0], ((), ()))[0]
        outputs = self.shapes.get(groups[0][-1], ((), ()))[1]
        parameters = sum(weight.numel() for name in names for weight in self._modules[name].parameters())
        return Row(pattern, kind, len(groups), inputs, outputs, sum(shares) if shares else None, parameters)


def _shapes(value: Any) -> Shapes:
    return tuple(tuple(leaf.shape) for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.ndim > 1)


def _show(shapes: Shapes) -> str:
    shown = [" x ".join(map(str, shape)) for shape in shapes[:3]]
    return ", ".join([*shown, "..."] if len(shapes) > 3 else shown)


def _pattern(name: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def _kind(part: Part) -> str:
    return "parallel" if part.entries else "joint" if len(part.streams) > 1 else "module"


def _merge(rows: list[Row]) -> list[Row]:
    """One row for all that have the same pattern, with the first one's shapes."""
    merged: dict[str, Row] = {}
    for row in rows:
        past = merged.get(row.pattern)
        if past is not None:
            share = None if past.share is None or row.share is None else past.share + row.share
            merged[row.pattern] = Row(
                past.pattern,
                past.kind,
                past.count + row.count,
                past.inputs or row.inputs,
                past.outputs or row.outputs,
                share,
                past.parameters + row.parameters,
            )
        else:
            merged[row.pattern] = row
    return list(merged.values())


def _top(model: nn.Module, inside: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules that neither are among `inside` nor hold one of them; lists of modules are looked into."""
    above = {".".join(name.split(".")[:depth]) for name in inside for depth in range(name.count(".") + 1)} | {""}

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if full in inside:
                continue
            if full in above or isinstance(child, nn.ModuleList) or (not inside and isinstance(module, nn.ModuleList)):
                yield from walk(full, child)
            else:
                yield full, child

    yield from walk("", model)


def _candidates(model: nn.Module, trace: _Trace) -> Iterator[Part]:
    """Modules of repeated blocks that give back features of their input's shape."""
    seen: set[str] = set()
    for name, module in _top(model, set()):
        pattern = _pattern(name)
        if pattern == name or pattern in seen or isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.Dropout)):
            continue
        inputs, outputs = trace.shapes.get(name, ((), ()))
        share = trace.share(name)
        if share is None or (share > 0 and outputs and set(outputs) <= set(inputs)):
            seen.add(pattern)
            names = list(signature(module.forward).parameters)
            yield Part(pattern, tuple(names[: len(outputs)]) if len(outputs) > 1 else ())


def _suggest(model: nn.Module, parts: list[Part], inputs: dict[str, Any] | None) -> str:
    """A spec in Python. What tells branches apart is every tensor that the forward takes but sample and timestep."""
    arguments = [name for name in signature(type(model).forward).parameters if name != "self"]
    timestep = next((name for name in arguments if name in TIMESTEPS), "TIMESTEP")
    given = arguments if inputs is None else [name for name in arguments if name in inputs]
    conditioning = [name for name in given[1:] if name != timestep and inputs is not None]
    lines = []
    for part in parts:
        streams = "".join(f', "{name}"' for name in part.streams)
        lines.append(f'        relcache.joint("{part.pattern}"{streams}),' if streams else f'        "{part.pattern}",')
    named = "".join(f'"{name}", ' for name in conditioning) or '"CONDITIONING", '
    return "\n".join(
        [
            "relcache.ModelSpec(",
            f'    "{type(model).__name__}",',
            "    modules=(",
            *lines,
            "    ),",
            f"    conditioning=({named.rstrip()}),",
            f'    timestep="{timestep}",',
            ")",
        ]
    )
