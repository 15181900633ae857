"""FirstBlockCache of diffusers: the first block runs at each step and decides about all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from relcache.bench.rivals.base import Options, Rival, hooked, lists_of_blocks, only_transformer


class FirstBlockCache(Rival):
    """FirstBlockCache; its threshold bounds the relative change of the first block's residual."""

    source: ClassVar[str] = "diffusers.hooks.FirstBlockCacheConfig; after ParaAttention"
    group: ClassVar[str] = "diffusers"

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

        model, config = only_transformer(pipeline_or_model), FirstBlockCacheConfig(options["threshold"])
        with hooked(model, lambda: apply_first_block_cache(model, config)):
            yield

    def unfit(self, pipeline_or_model: Any) -> str:
        if sum(map(len, lists_of_blocks(only_transformer(pipeline_or_model)).values())) < 2:
            return "FirstBlockCache skips the blocks after the first: it needs 2 blocks or more"
        return ""
