"""Finding the threshold at which a method has a given mean number of full steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from relcache.bench.sampling import Sampler
from relcache.methods import Method

FIRST_SEED = 1_000_000  # calibration never uses the seeds that results are reported on


@dataclass
class Calibration:
    """Thresholds that were tried for one method, and the mean number of full steps that each gave."""

    tried: dict[float, float] = field(default_factory=dict)

    def nearest(self, nfc: float) -> float:
        """The threshold tried whose mean number of full steps is nearest to `nfc`."""
        return min(self.tried, key=lambda threshold: (abs(self.tried[threshold] - nfc), threshold))


def calibrate(
    sampler: Sampler,
    method: Method,
    nfc: float,
    samples: int = 8,
    classes: int = 10,
    known: Calibration | None = None,
    most: int = 12,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> float:
    """The threshold at which `method` has `nfc` full steps on average, by bisection on calibration seeds.

    The number of full steps falls in leaps as the threshold grows, so the nearest threshold found within `most` runs
    is returned where none hits the number.

    Args:
        sampler: how to sample.
        method: a method whose schedule has a threshold (its present one is where the search begins).
        nfc: mean number of full steps that is wanted.
        samples: calibration samples, of all classes in turn.
        classes: number of classes.
        known: runs of the same method to start from; this search's runs are added to it.
        most: runs at the most.
        tell: called after each run with its threshold and its mean number of full steps.

    Raises:
        ValueError: a number of full steps that the method cannot have, or a method without a threshold.
    """
    threshold = getattr(method.schedule, "threshold", None)
    if threshold is None:
        raise ValueError(f"{method.name} has no threshold to calibrate: its schedule is {method.schedule!r}")
    warmup = getattr(method.schedule, "warmup", 1)
    if not warmup <= nfc <= sampler.steps:
        raise ValueError(f"the number of full steps lies between the warm-up, {warmup}, and {sampler.steps}; got {nfc}")
    calibration = known if known is not None else Calibration()
    seeds = [FIRST_SEED + index for index in range(samples)]
    labels = [index % classes for index in range(samples)]
    if not calibration.tried:
        calibration.tried[0.0] = float(sampler.steps)
    for _ in range(most):
        if calibration.tried[calibration.nearest(nfc)] == nfc:
            break
        threshold = _next(calibration.tried, nfc, threshold, warmup)
        if threshold in calibration.tried:
            break
        run = sampler.run(method.with_threshold(threshold), seeds, labels)
        calibration.tried[threshold] = run.nfc
        tell(threshold, run.nfc)
    return calibration.nearest(nfc)


def _next(tried: dict[float, float], nfc: float, start: float, warmup: int) -> float:
    """The threshold to try next: midway between one too small and one too large, or a step towards `nfc`.

    Gaps grow about as the square root of the threshold, which sets the length of such a step.
    """
    small = max(threshold for threshold, found in tried.items() if found > nfc)
    large = [threshold for threshold, found in tried.items() if found < nfc and threshold > small]
    if not large and small == 0:
        return _round(start if start > 0 else 0.1)
    if large and small > 0:
        return _round(math.sqrt(small * min(large)))
    edge = min(large) if large else small
    step = (max(tried[edge] - warmup, 0.5) / max(nfc - warmup, 0.5)) ** 2
    return _round(edge * min(max(step, 0.2), 0.9) if large else edge * max(min(step, 5.0), 1.1))


def _round(threshold: float) -> float:
    return float(f"{threshold:.4g}")
