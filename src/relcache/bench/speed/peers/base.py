"""What a method of another library is to a race, and how a model is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from relcache.models import ModelSpec

WARMUP = 2  # full steps at the beginning, of those peers that can be told, as the methods here have them
PHASE = 3  # the first full step after them that diffusers' TaylorSeer takes, and whoever is told the steps


@dataclass(frozen=True)
class Peer:
    """A method of another library.

    Attributes:
        name: what the table calls it, the library first.
        enable: a context in which a transformer works by it, given the transformer, its spec, the budget and the
            number of steps.
        has_threshold: whether the budget is a threshold, from which the number of full steps follows; else an interval.
        phase: of an interval, the first full step after the warm-up.
        start: the threshold at which a search begins.
        warmup: full steps that every run begins with.
        check: raises a ValueError where the peer cannot work on a transformer, or its package is not installed.
    """

    name: str
    enable: Callable[[nn.Module, ModelSpec, float, int], AbstractContextManager[None]]
    has_threshold: bool = True
    phase: int | None = None
    start: float = 0.1
    warmup: int = 1
    check: Callable[[nn.Module, ModelSpec], None] = lambda model, spec: None


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back, at the end, every attribute and submodule of every module of `model`.

    Peers leave some behind when they are disabled: registries of hooks, forwards of their own, aliases of modules.
    """
    before: list[tuple[nn.Module, dict[str, Any], dict[str, nn.Module | None]]] = [
        (module, dict(vars(module)), dict(module._modules)) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes, children in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)


def lists_of_blocks(model: nn.Module, spec: ModelSpec) -> dict[str, nn.ModuleList]:
    """The lists of blocks that the spec's units lie in, by name, in the order in which they are computed."""
    found: dict[str, nn.ModuleList] = {}
    for unit in spec.units(model):
        name = next(iter(unit.modules)).partition(".")[0]
        blocks = getattr(model, name)
        if isinstance(blocks, nn.ModuleList):
            found[name] = blocks
    return found
