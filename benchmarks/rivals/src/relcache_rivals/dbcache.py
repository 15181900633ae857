"""DBCache of cache-dit, with or without one of its calibrators, which forecast what is skipped.

It computes one block in front and none behind (F1B0), the fewest that it allows. It decides by the change of that
block's residual, or takes full steps by a mask. Each list of blocks in its adapter has a first block and a decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from relcache.bench.rivals.base import PHASE, WARMUP, Options
from relcache.schedules import Interval
from relcache_rivals.cache_dit_base import CacheDit

POLICIES = ("slow", "medium", "fast", "ultra")
POLICY_THRESHOLDS = (0.15, 0.15, 0.2, 0.3)  # by policy, as in the guide's pictures; it shows none of "medium"


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
    """DBCache with one of the package's own masks (SCM): 0 is "slow", 1 "medium", 2 "fast" and 3 "ultra".

    Attributes:
        dynamic: whether further steps are full if the first block's residual changes by more than a threshold.
    """

    dynamic: bool = False
    source: ClassVar[str] = "cache_dit.steps_mask"
    budget: ClassVar[str] = "policy"
    values: ClassVar[tuple[float, ...]] = (0, 1, 2, 3)

    def decision(self, package: Any, options: Options, steps: int) -> dict[str, Any]:
        policy = int(options["policy"])
        return {
            "steps_computation_mask": package.steps_mask(mask_policy=POLICIES[policy], total_steps=steps),
            "steps_computation_policy": "dynamic" if self.dynamic else "static",
            "residual_diff_threshold": POLICY_THRESHOLDS[policy],
        }
