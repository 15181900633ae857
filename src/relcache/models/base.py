"""Where in a model the modules are. Knows nothing of forecasters, schedules or the session.

A family of transformers is data: patterns for module names. The class is matched by its name, so no model class is
imported, and a subclass is matched by the name of its nearest known ancestor.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn


class Unit(NamedTuple):
    """One module whose output is cached: its name in the model, and the module."""

    name: str
    module: nn.Module


@dataclass(frozen=True)
class ModelSpec:
    """One transformer family.

    Attributes:
        class_name: name of the transformer class.
        modules: patterns of the names of the modules to cache, in the order in which a block computes them. `*` stands
            for a block's number. Each module takes its features as its first argument, batch first, and returns one
            tensor of features, before gate and residual.
        conditioning: names of the arguments of `forward` that tell guidance branches apart.
        timestep: name of the argument of `forward` that holds the timestep.
        time_runs: -1 where the timestep falls as sampling goes on, 1 where it rises.

    Raises:
        ValueError: no patterns, or a direction of time other than -1 and 1.
    """

    class_name: str
    modules: tuple[str, ...]
    conditioning: tuple[str, ...] = ()
    timestep: str = "timestep"
    time_runs: int = -1

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError(f"the spec of {self.class_name} names no modules")
        if self.time_runs not in (-1, 1):
            raise ValueError(f"time_runs is -1 (the timestep falls) or 1 (it rises), got {self.time_runs!r}")

    def units(self, model: nn.Module) -> list[Unit]:
        """The modules of `model` to cache, in the order in which they are computed.

        Raises:
            ValueError: a pattern matches no module; the message names it and the nearest modules there are.
        """
        found: list[tuple[tuple[int, ...], int, Unit]] = []
        names = dict(model.named_modules())
        for place, pattern in enumerate(self.modules):
            expression = re.compile(r"(\d+)".join(re.escape(part) for part in pattern.split("*")))
            matches = [(expression.fullmatch(name), name, module) for name, module in names.items()]
            hits = [
                (tuple(int(number) for number in match.groups()), place, Unit(name, module))
                for match, name, module in matches
                if match
            ]
            if not hits:
                shown = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names if name})
                near = difflib.get_close_matches(pattern, shown, n=5, cutoff=0.3) or shown[:5]
                raise ValueError(
                    f"the spec of {self.class_name} looks for modules named {pattern!r} and {type(model).__name__} has "
                    f"none; it has {', '.join(near) if near else 'no modules at all'}"
                )
            found += hits
        return [unit for *_, unit in sorted(found, key=lambda entry: entry[:2])]


def spec_for(model: nn.Module, specs: Iterable[ModelSpec]) -> ModelSpec:
    """The spec of `model`'s class, or of its nearest ancestor that has one.

    Raises:
        ValueError: no spec; the message names the class and those that there are.
    """
    by_name = {spec.class_name: spec for spec in specs}
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in by_name:
            return by_name[ancestor.__name__]
    raise ValueError(
        f"relcache has no spec for {type(model).__name__}; it knows {', '.join(sorted(by_name))}. "
        "Describe the model with relcache.ModelSpec(...) and pass it as spec="
    )
