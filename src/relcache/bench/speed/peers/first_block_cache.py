"""FirstBlockCache of diffusers: the first block runs at each step and decides about all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from relcache.bench.speed.peers.base import Peer, hooked, lists_of_blocks
from relcache.models import ModelSpec


def first_block_cache() -> Peer:
    """Return FirstBlockCache; its threshold bounds the relative change of the first block's residual."""

    @contextmanager
    def enable(model: nn.Module, spec: ModelSpec, threshold: float, steps: int) -> Iterator[None]:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        with hooked(model, lambda: apply_first_block_cache(model, FirstBlockCacheConfig(threshold))):
            yield

    return Peer("diffusers FirstBlockCache", enable, check=_check_blocks)


def _check_blocks(model: nn.Module, spec: ModelSpec) -> None:
    if sum(map(len, lists_of_blocks(model, spec).values())) < 2:
        raise ValueError("FirstBlockCache skips the blocks after the first: it needs 2 blocks or more, see --blocks")
