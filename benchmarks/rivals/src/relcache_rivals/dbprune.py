"""DBPrune of cache-dit, which decides about each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from relcache.bench.rivals.base import Options, only_transformer
from relcache_rivals.cache_dit_base import CacheDit, installed


@dataclass(frozen=True)
class DBPrune(CacheDit):
    """DBPrune, which skips each block on its own while its input changes little, so that steps are rarely full.

    Its first steps and its dynamic threshold are as in the package's guide, its thresholds as in the guide's table.
    """

    source: ClassVar[str] = "cache_dit.DBPruneConfig"
    budget: ClassVar[str] = "prune_threshold"
    values: ClassVar[tuple[float, ...]] = (0.03, 0.04, 0.06, 0.2)
    warmup: ClassVar[int] = 8

    def config(self, package: Any, options: Options, steps: int) -> Any:
        return package.DBPruneConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=self.warmup, num_inference_steps=steps,
            residual_diff_threshold=options["prune_threshold"], enable_dynamic_prune_threshold=True,
        )  # fmt: skip

    def unfit(self, pipeline_or_model: Any) -> str:
        unfit = super().unfit(pipeline_or_model)
        if unfit:
            return unfit
        model = only_transformer(pipeline_or_model)
        patterns = installed().BlockAdapterRegister.get_adapter(model, skip_post_init=True).forward_pattern
        if any(pattern.Forward_H_only for pattern in (patterns if isinstance(patterns, list) else [patterns])):
            return f"cache-dit's DBPrune fails with a TypeError at blocks without a text stream: {type(model).__name__}"
        return ""
