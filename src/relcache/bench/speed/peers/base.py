"""A peer: a method of another library in a race."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from relcache.models import ModelSpec

WARMUP = 2  # full steps at the beginning of peers with that option, as for relcache's methods
PHASE = 3  # the first full step after the warm-up of diffusers' TaylorSeer, and of peers with a mask of steps


@dataclass(frozen=True)
class Peer:
    """A method of another library.

    Attributes:
        name: its name in the table, the library first.
        enable: returns a context that enables it, from the transformer, its spec, the budget and the number of steps.
        has_threshold: whether the budget is a threshold; else it is an interval.
        phase: the first full step of an interval after the warm-up.
        start: the threshold at which a search begins.
        warmup: number of full steps at the beginning of every run.
        check: raises ValueError if the peer does not support a transformer, or its package is not installed.
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
    """Restore all attributes and submodules of all modules of `model` at the end.

    Disabled peers leave some behind: registries of hooks, forwards of their own, aliases of modules.
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
    """Return the lists of blocks with units of the spec, by name, in the order of computation."""
    found: dict[str, nn.ModuleList] = {}
    for unit in spec.units(model):
        name = next(iter(unit.modules)).partition(".")[0]
        blocks = getattr(model, name)
        if isinstance(blocks, nn.ModuleList):
            found[name] = blocks
    return found


@contextmanager
def hooked(model: nn.Module, apply: Callable[[], None]) -> Iterator[None]:
    """Hook `model` by `apply` inside the context, with a cache context of its own.

    The model's registry remembers the hooked modules, so it is invalidated whenever they change.
    """
    from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

    with as_it_was(model):
        apply()
        registry = HookRegistry.check_if_exists_or_initialize(model)
        registry.invalidate_child_registries_cache()
        _set_cache_context(model, CacheContext("run"))
        try:
            yield
        finally:
            registry.invalidate_child_registries_cache()
