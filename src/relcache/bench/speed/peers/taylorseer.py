"""TaylorSeer of diffusers, on the same modules that relcache caches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from relcache.bench.speed.peers.base import PHASE, WARMUP, Peer, hooked
from relcache.models import ModelSpec


def taylorseer(order: int) -> Peer:
    """Return TaylorSeer at a fixed interval; for a parallel unit it caches the block."""

    @contextmanager
    def enable(model: nn.Module, spec: ModelSpec, interval: float, steps: int) -> Iterator[None]:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        names = [re.escape(_one_module(unit.modules)) for unit in spec.units(model)]
        config = TaylorSeerCacheConfig(
            cache_interval=int(interval), disable_cache_before_step=WARMUP, max_order=order,
            taylor_factors_dtype=next(model.parameters()).dtype, cache_identifiers=names,
        )  # fmt: skip
        with hooked(model, lambda: apply_taylorseer_cache(model, config)):
            yield

    return Peer(f"diffusers TaylorSeer, m={order}", enable, has_threshold=False, phase=PHASE, warmup=WARMUP)


def _one_module(modules: dict[str, nn.Module]) -> str:
    """Return the name of a unit's module, or of the block around several parallel ones."""
    names = list(modules)
    return names[0] if len(names) == 1 else names[0].rpartition(".")[0]
