"""TaylorSeer of diffusers, on the same modules that relcache caches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from relcache.bench.rivals.base import PHASE, WARMUP, Options, Rival, hooked, known_spec, only_transformer


@dataclass(frozen=True)
class TaylorSeerHook(Rival):
    """TaylorSeer of an order at a fixed interval; for a parallel unit it caches the block."""

    order: int
    source: ClassVar[str] = "diffusers.hooks.TaylorSeerCacheConfig; arXiv 2503.06923"
    group: ClassVar[str] = "diffusers"
    budget: ClassVar[str] = "interval"
    phase: ClassVar[int | None] = PHASE
    warmup: ClassVar[int] = WARMUP

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        model = only_transformer(pipeline_or_model)
        config = TaylorSeerCacheConfig(
            cache_interval=int(options["interval"]), disable_cache_before_step=WARMUP, max_order=self.order,
            taylor_factors_dtype=next(model.parameters()).dtype, **self.cached(model),
        )  # fmt: skip
        with hooked(model, lambda: apply_taylorseer_cache(model, config)):
            yield

    def cached(self, model: nn.Module) -> dict[str, Any]:
        """Return the options of the config that say what is cached."""
        units = known_spec(model).units(model)
        return {"cache_identifiers": [re.escape(_one_module(unit.modules)) for unit in units]}


def _one_module(modules: dict[str, nn.Module]) -> str:
    """Return the name of a unit's module, or of the block around several parallel ones."""
    names = list(modules)
    return names[0] if len(names) == 1 else names[0].rpartition(".")[0]


@dataclass(frozen=True)
class LiteTaylorSeerHook(TaylorSeerHook):
    """TaylorSeer's lite mode: it skips all blocks, and extrapolates the output of the last layer alone."""

    source: ClassVar[str] = "diffusers.hooks.TaylorSeerCacheConfig, use_lite_mode; arXiv 2503.06923"

    def cached(self, model: nn.Module) -> dict[str, Any]:
        from diffusers.hooks.taylorseer_cache import _BLOCK_IDENTIFIERS

        if hasattr(model, "proj_out"):
            return {"use_lite_mode": True}
        # The mode knows the last layer as proj_out. Where that is two layers, its patterns are given with the second.
        return {"skip_predict_identifiers": list(_BLOCK_IDENTIFIERS), "cache_identifiers": ["proj_out_2"]}

    def unfit(self, pipeline_or_model: Any) -> str:
        model = only_transformer(pipeline_or_model)
        if hasattr(model, "proj_out") or hasattr(model, "proj_out_2"):
            return ""
        return f"TaylorSeer's lite mode extrapolates the layer proj_out, which {type(model).__name__} does not have"
