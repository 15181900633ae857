"""What the caches of diffusers need beside their hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from relcache.bench.speed.peers.base import as_it_was


@contextmanager
def hooked(model: nn.Module, apply: Callable[[], None]) -> Iterator[None]:
    """A context in which `apply` has hooked `model`, whether its pipeline names contexts of a cache or not.

    The model's registry remembers which modules have hooks, and has to forget it whenever that changes.
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
