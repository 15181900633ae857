"""DBCache of cache-dit, with or without its TaylorSeer calibrator.

It computes one block in front and none behind (F1B0), the fewest that it allows. It decides by the change of that
block's residual, or takes full steps by a mask. Each list of blocks in its adapter has a first block and a decision.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from relcache.bench.rivals.base import PHASE, WARMUP, Options, Rival, as_it_was, lists_of_blocks, only_transformer
from relcache.schedules import Interval


@dataclass(frozen=True)
class DBCache(Rival):
    """DBCache, which reuses the cached blocks' residual, or extrapolates it by TaylorSeer of an order."""

    order: int | None = None
    source: ClassVar[str] = "cache_dit.DBCacheConfig"
    group: ClassVar[str] = "cache-dit"
    warmup: ClassVar[int] = WARMUP

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        package, model = _package(), only_transformer(pipeline_or_model)
        config = package.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=WARMUP, num_inference_steps=steps,
            **self.decision(options, steps),
        )  # fmt: skip
        calibrator = None if self.order is None else package.TaylorSeerCalibratorConfig(taylorseer_order=self.order)
        with _silence(), as_it_was(model):
            package.enable_cache(model, cache_config=config, calibrator_config=calibrator)
            try:
                yield
            finally:
                package.disable_cache(model)

    def decision(self, options: Options, steps: int) -> dict[str, Any]:
        """Return the options of its config that decide the full steps."""
        return {"residual_diff_threshold": options["threshold"]}

    def unfit(self, pipeline_or_model: Any) -> str:
        model = only_transformer(pipeline_or_model)
        try:
            package = _package()
        except ValueError as error:
            return str(error)
        if not package.BlockAdapterRegister.is_supported(model):
            return f"cache-dit has no adapter for {type(model).__name__}"
        *_, (name, last) = lists_of_blocks(model).items()
        if len(last) < 2:
            return f"DBCache skips the blocks after the first: it needs 2 or more of {name}"
        return ""


@dataclass(frozen=True)
class MaskedDBCache(DBCache):
    """DBCache with full steps by a mask (SCM), here at an interval."""

    budget: ClassVar[str] = "interval"
    phase: ClassVar[int | None] = PHASE

    def decision(self, options: Options, steps: int) -> dict[str, Any]:
        schedule = Interval(int(options["interval"]), WARMUP, PHASE)
        mask = [int(schedule.wants_full(None, step, None)) for step in range(steps)]
        return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


def _package() -> Any:
    """Import cache-dit; raise ValueError if it is not installed."""
    try:
        return importlib.import_module("cache_dit")
    except ImportError as error:
        raise ValueError(f'it needs cache-dit ({error}): pip install "relcache[peers]"') from error


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the lines that cache-dit's loggers, which share their handlers, write on enabling and disabling."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("CACHE_DIT").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)
