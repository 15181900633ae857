"""DBCache of cache-dit, with or without one of its calibrators, which forecast what is skipped.

It computes one block in front and none behind (F1B0), the fewest that it allows. It decides by the change of that
block's residual, or takes full steps by a mask. Each list of blocks in its adapter has a first block and a decision.
"""

from __future__ import annotations

import importlib
import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from relcache.bench.rivals.base import PHASE, WARMUP, Options, Rival, as_it_was, lists_of_blocks, only_transformer
from relcache.schedules import Interval

POLICIES = ("slow", "medium", "fast", "ultra")


@dataclass(frozen=True)
class CacheDit(Rival):
    """A cache of cache-dit.

    Attributes:
        calibrator: "TaylorSeer", "FoCa" or "DMD"; "" reuses the skipped blocks' residual.
        order: TaylorSeer's order.
    """

    calibrator: str = ""
    order: int | None = None
    group: ClassVar[str] = "cache-dit"
    warmup: ClassVar[int] = WARMUP

    @abstractmethod
    def config(self, package: Any, options: Options, steps: int) -> Any:
        """Return the package's config of a run of `steps` steps."""

    @contextmanager
    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Iterator[None]:
        package, model = _package(), only_transformer(pipeline_or_model)
        calibrator = None
        if self.calibrator:
            order = {} if self.order is None else {"taylorseer_order": self.order}
            calibrator = getattr(package, f"{self.calibrator}CalibratorConfig")(**order)
        with _silence(), as_it_was(model):
            package.enable_cache(
                model, cache_config=self.config(package, options, steps), calibrator_config=calibrator
            )
            try:
                yield
            finally:
                package.disable_cache(model)

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
            return f"cache-dit skips the blocks after the first: it needs 2 or more of {name}"
        return ""


@dataclass(frozen=True)
class DBCache(CacheDit):
    """DBCache; its threshold bounds the relative change of the first block's residual."""

    source: ClassVar[str] = "cache_dit.DBCacheConfig"

    def config(self, package: Any, options: Options, steps: int) -> Any:
        return package.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=WARMUP, num_inference_steps=steps,
            **self.decision(package, options, steps),
        )  # fmt: skip

    def decision(self, package: Any, options: Options, steps: int) -> dict[str, Any]:
        """Return the options of the config that decide the full steps."""
        return {"residual_diff_threshold": options["threshold"]}


@dataclass(frozen=True)
class MaskedDBCache(DBCache):
    """DBCache with full steps by a mask (SCM), here at an interval."""

    budget: ClassVar[str] = "interval"
    phase: ClassVar[int | None] = PHASE

    def decision(self, package: Any, options: Options, steps: int) -> dict[str, Any]:
        interval = int(options["interval"])
        schedule = Interval(interval, WARMUP, PHASE if interval > 1 else None)
        mask = [int(schedule.wants_full(None, step, None)) for step in range(steps)]
        return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


@dataclass(frozen=True)
class PolicyDBCache(DBCache):
    """DBCache with one of the package's own masks (SCM): 0 is "slow", 1 "medium", 2 "fast" and 3 "ultra"."""

    source: ClassVar[str] = "cache_dit.steps_mask"
    budget: ClassVar[str] = "policy"
    values: ClassVar[tuple[float, ...]] = (0, 1, 2, 3)

    def decision(self, package: Any, options: Options, steps: int) -> dict[str, Any]:
        mask = package.steps_mask(mask_policy=POLICIES[int(options["policy"])], total_steps=steps)
        return {"steps_computation_mask": mask, "steps_computation_policy": "static"}


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
