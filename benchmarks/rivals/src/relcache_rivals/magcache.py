"""MagCache of diffusers: it predicts a skip's error from ratios of norms that were measured on calibration samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

from torch import nn

from relcache.bench.rivals.base import WARMUP, Options, Rival, hooked, lists_of_blocks, only_transformer
from relcache.bench.sampling.batches import Sampler


@dataclass(frozen=True)
class MagCache(Rival):
    """MagCache; its threshold bounds the error that the ratios of the skipped steps predict.

    Attributes:
        longest: the most steps that it skips in succession, K in the paper; 0 for no limit.
        retained: the share of the steps at the beginning that are full; 0 for two steps.
    """

    longest: int
    retained: float
    source: ClassVar[str] = "diffusers.hooks.MagCacheConfig; arXiv 2506.09045"
    group: ClassVar[str] = "diffusers"

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        model = only_transformer(pipeline_or_model)
        config = MagCacheConfig(
            threshold=options["threshold"], max_skip_steps=self.longest or steps,
            retention_ratio=self.retained or WARMUP / steps, num_inference_steps=steps,
            mag_ratios=list(options["ratios"]),
        )  # fmt: skip
        with hooked(model, lambda: apply_mag_cache(model, config)):
            yield

    def unfit(self, pipeline_or_model: Any) -> str:
        if sum(map(len, lists_of_blocks(only_transformer(pipeline_or_model)).values())) < 2:
            return "MagCache skips all blocks between the first and the last: it needs 2 blocks or more"
        return ""

    def calibrate(self, sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> dict[str, Any]:
        """Return each step's ratio of the norm of the blocks' residual to the step's before, averaged over batches."""
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        model, batches = only_transformer(sampler.pipeline), []
        for start in range(0, len(seeds), sampler.batch):
            rows = slice(start, start + sampler.batch)
            # One step more than there are: after its last step the hook prints the ratios and forgets them.
            config = MagCacheConfig(num_inference_steps=sampler.steps + 1, calibrate=True)
            with hooked(model, partial(apply_mag_cache, model, config)), _measured(model) as ratios:
                sampler.call(seeds[rows], conditions[rows])
            batches.append(ratios)
        return {"ratios": [fmean(ratios) for ratios in zip(*batches, strict=True)]}


@contextmanager
def _measured(model: nn.Module) -> Iterator[list[float]]:
    """Yield a list that collects the ratio of each call; at the end of a run, pipelines reset the hook's state."""
    from diffusers.hooks.mag_cache import _MAG_CACHE_BLOCK_HOOK

    *_, blocks = lists_of_blocks(model).values()
    registry: Any = blocks[-1]._diffusers_hook
    manager, ratios = registry.get_hook(_MAG_CACHE_BLOCK_HOOK).state_manager, list[float]()

    def after(*_: Any) -> None:
        conditional = next(iter(manager._state_cache.values()))  # diffusers advises it for guidance in a second call
        ratios.extend(conditional.calibration_ratios[len(ratios) :])

    hook = model.register_forward_hook(after)
    try:
        yield ratios
    finally:
        hook.remove()
