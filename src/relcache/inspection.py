"""List the modules of a model that relcache would cache, and those that it would compute at every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.models import SPECS, ModelSpec, Part, Size, spec_for
from relcache.models.patterns import pattern_of
from relcache.session.components import find_transformers
from relcache.shapes.flops import Flops, count_modules
from relcache.shapes.meta import without_values

TIMESTEPS = ("timestep", "timesteps", "t", "time", "sigma")
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ModuleRow:
    """Modules with names that differ only in the block's number.

    Attributes:
        pattern: the name, with `*` for each number.
        kind: "module", "joint" or "parallel" for cached modules; else the class.
        count: number of modules.
        inputs, outputs: shapes of the first module's tensors in one forward; () if the forward does not call it.
        share: share of the model's FLOPs, 0 to 1; None without a forward.
        parameters: number of parameters of all the modules.
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
    """One transformer: the units of its spec are `cached`, the other modules are `computed` at every step.

    Without a spec, `cached` is empty and `suggestion` holds a draft of one, in Python. `others` are expressions for the
    pipeline's other transformers.
    """

    model: str
    cached: list[ModuleRow]
    computed: list[ModuleRow]
    suggestion: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        shares = [row.share for row in self.cached if row.share is not None]
        flops = f", {sum(shares):.1%} of the FLOPs" if shares else ""
        lines = [f"{self.model}: {sum(row.count for row in self.cached)} units cached{flops}"]
        lines += [f"  {row}" for row in self.cached]
        lines += ["computed at every step:", *(f"  {row}" for row in self.computed)]
        if self.suggestion:
            lines += ["no spec; a draft of one (check each pattern):", self.suggestion]
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
    """List the cached and the computed modules of a transformer, with the shapes and FLOPs of one forward.

    The forward runs on the meta device and computes nothing, so a model of any size takes moments. A model without a
    spec gets a draft of a `ModelSpec`.

    Args:
        model_or_pipe: a transformer, or a pipeline; then its first transformer is inspected.
        spec: the spec to use instead of relcache's own.
        size: size of the forward; by default a small one.
        inputs: arguments of the forward, if the spec does not make them. Without inputs there are no shapes and
            no FLOPs.

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
        draft = _suggest(model, _candidates(model, trace), inputs)
        return Inspection(type(model).__name__, [], trace.rows_outside(set()), draft, others)
    units = spec.units(model)
    cached = [trace.row(unit.name, _kind(unit.part), list(unit.modules)) for unit in units if not unit.turn]
    rows = trace.rows_outside({name for unit in units for name in unit.modules})
    computed = [row for row in rows if row.parameters or row.share]
    computed.sort(key=lambda row: row.share or 0.0, reverse=True)
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

            def record(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                self.shapes.setdefault(name, (_shapes((args, kwargs)), _shapes(output)))

            module.register_forward_hook(record, with_kwargs=True)
        return count_modules(model, list(self._modules), (), inputs)

    def share(self, name: str) -> float | None:
        """Return the module's share of the FLOPs, None without a forward."""
        return None if self._flops is None else self._flops[name] / max(self._total, 1)

    def row(self, unit: str, kind: str, names: list[str]) -> ModuleRow:
        """Return the row of one unit with the modules `names`."""
        shares = [share for name in names if (share := self.share(name)) is not None]
        inputs = self.shapes.get(names[0], ((), ()))[0]
        outputs = self.shapes.get(names[-1], ((), ()))[1]
        parameters = sum(weight.numel() for name in names for weight in self._modules[name].parameters())
        return ModuleRow(pattern_of(unit), kind, 1, inputs, outputs, sum(shares) if shares else None, parameters)

    def rows_outside(self, inside: set[str]) -> list[ModuleRow]:
        """Return the rows of the largest modules without any of `inside`."""
        top = _top(self._modules[""], inside)
        return _merge([self.row(name, type(module).__name__, [name]) for name, module in top])


def _shapes(value: Any) -> Shapes:
    return tuple(tuple(leaf.shape) for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.ndim > 1)


def _show(shapes: Shapes) -> str:
    shown = [" x ".join(map(str, shape)) for shape in shapes[:3]]
    return ", ".join([*shown, "..."] if len(shapes) > 3 else shown)


def _kind(part: Part) -> str:
    return "parallel" if part.entries else "joint" if len(part.streams) > 1 else "module"


def _merge(rows: list[ModuleRow]) -> list[ModuleRow]:
    """Merge the rows of each pattern into one row, with the shapes of the first."""
    merged: dict[str, ModuleRow] = {}
    for row in rows:
        first = merged.setdefault(row.pattern, row)
        if first is not row:
            merged[row.pattern] = replace(
                first,
                count=first.count + row.count,
                inputs=first.inputs or row.inputs,
                outputs=first.outputs or row.outputs,
                share=None if first.share is None or row.share is None else first.share + row.share,
                parameters=first.parameters + row.parameters,
            )
    return list(merged.values())


def _top(model: nn.Module, inside: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the largest modules that are not in `inside` and contain none of it; a list yields its entries."""
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
    """Yield the modules of repeated blocks that return features of their input's shape."""
    patterns: set[str] = set()
    for name, module in _top(model, set()):
        pattern = pattern_of(name)
        if pattern == name or pattern in patterns or isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.Dropout)):
            continue
        inputs, outputs = trace.shapes.get(name, ((), ()))
        share = trace.share(name)
        if share is None or (share > 0 and outputs and set(outputs) <= set(inputs)):
            patterns.add(pattern)
            names = list(signature(module.forward).parameters)
            yield Part(pattern, tuple(names[: len(outputs)]) if len(outputs) > 1 else ())


def _suggest(model: nn.Module, parts: Iterable[Part], inputs: dict[str, Any] | None) -> str:
    """Return a draft of a spec, in Python. Its conditioning is every argument but the sample and the timestep."""
    arguments = [name for name in signature(type(model).forward).parameters if name != "self"]
    timestep = next((name for name in arguments if name in TIMESTEPS), "TIMESTEP")
    passed = [name for name in arguments if name in (inputs or ())]
    conditioning = [name for name in passed[1:] if name != timestep]
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
