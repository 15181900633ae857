"""Finding the interval or the threshold at which a method has a given number of full steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relcache.bench.sampling.batches import Sampler
from relcache.method import Method
from relcache.methods import BY_NAME, method_from_config

WARMUP = 2  # full steps that every run begins with unless its method says otherwise
CLOSE = 1.05  # ratio of thresholds between which the smallest that gives a number of full steps is not sought
FIRST_SEED = 1_000_000  # calibration never uses the seeds that results are reported on


def calibration_seeds(number: int) -> list[int]:
    """Seeds of `number` calibration samples, none of which a result is reported on."""
    return [FIRST_SEED + index for index in range(number)]


def full_steps(interval: int, steps: int, phase: int | None = None, warmup: int = WARMUP) -> int:
    """How many of `steps` steps an interval computes in full."""
    first = warmup - 1 + interval if phase is None else phase
    return warmup + len(range(first, steps, interval))


def interval_for(nfc: int, steps: int, phase: int | None = None, warmup: int = WARMUP) -> int:
    """The interval at which the number of full steps of `steps` is nearest to `nfc`; it cannot be any number."""
    return min(range(1, steps + 1), key=lambda interval: abs(full_steps(interval, steps, phase, warmup) - nfc))


def spacing_for(nfc: int, steps: int, phase: int | None = None, warmup: int = WARMUP) -> dict[str, int]:
    """The interval that gives `nfc` full steps, with a phase where the published one gives another number.

    Of phases that give `nfc`, that nearest to the published one is taken, whose first gap is less than two intervals.
    A phase that is given stays; then, and where no such phase is to be had, the number is the nearest that there is.
    """
    interval = interval_for(nfc, steps, phase, warmup)
    if phase is not None or full_steps(interval, steps, None, warmup) == nfc:
        return {"interval": interval}
    exact = [
        (abs(first - published), interval, first)
        for interval in range(2, steps + 1)
        for published in (warmup - 1 + interval,)
        for first in range(warmup, min(published + interval, steps + 1))
        if full_steps(interval, steps, first, warmup) == nfc
    ]
    if not exact:
        return {"interval": interval}
    _, interval, first = min(exact)
    return {"interval": interval, "phase": first}


def budgets_of(method: Method) -> dict[str, Any]:
    """The options of a method that decide its full steps, by name, as a config has them."""
    found = {name: getattr(method.schedule, name, None) for name in ("interval", "threshold", "phase")}
    return {name: value for name, value in found.items() if value is not None}


def to_begin_with(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with an order and a threshold where its method takes them and it gives none."""
    build = BY_NAME.get(str(config.get("method")).lower())
    parameters = inspect.signature(build).parameters if build else {}
    return {key: value for key, value in (("order", 2), ("threshold", 0.1)) if key in parameters} | dict(config)


def with_any_budget(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with some interval or threshold where its method takes one: to see whether the rest of it is right."""
    config = to_begin_with(config)
    build = BY_NAME.get(str(config.get("method")).lower())
    takes_interval = build is not None and "interval" in inspect.signature(build).parameters
    return {"interval": 2, **config} if takes_interval else config


def _budget_options(config: Mapping[str, Any]) -> list[str]:
    """The options by which the method of `config` may have any number of full steps, the usual one first."""
    build = BY_NAME.get(str(config.get("method")).lower())
    parameters = inspect.signature(build).parameters if build else {}
    return [name for name in ("interval", "threshold", "full_steps", "speedup") if name in parameters]


def has_budget(config: Mapping[str, Any]) -> bool:
    """Whether the options of `config` alone decide its full steps, or all are full."""
    budgets = _budget_options(config)
    return not budgets or any(name in config for name in budgets)


def check_budget(config: Mapping[str, Any], nfc: float, steps: int) -> None:
    """See that the method of `config` can be given `nfc` full steps of `steps`; full compute stays as it is.

    Raises:
        ValueError: its own options decide them, or it cannot have so many or so few.
    """
    name = str(config.get("method")).lower()
    if name == "full":
        return
    if name == "preset":
        raise ValueError(f"a preset has full steps of its own: do not ask for {nfc:g} beside it")
    if has_budget(config):
        own = next((key for key in ("interval", "threshold", "full_steps", "speedup") if key in config), "options")
        raise ValueError(
            f"{name} has {own}={config.get(own)}, which decides its full steps: leave that out, or do not ask for "
            f"{nfc:g} full steps"
        )
    warmup = config.get("warmup", WARMUP) if name != "auto" else 1
    if steps <= warmup:
        raise ValueError(
            f"{steps} steps are no more than the warm-up of {warmup} full steps, so all are full: leave --nfc out, or "
            "ask for more --steps"
        )
    if not warmup <= nfc <= steps:
        least = f"the warm-up, {warmup}," if warmup > 1 else f"{warmup}"
        raise ValueError(f"the number of full steps lies between {least} and {steps}; got {nfc:g}")


def at_budget(
    config: Mapping[str, Any],
    nfc: int,
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
    known: Calibration | None = None,
) -> Method:
    """The method of `config` with the interval or the threshold that gives `nfc` full steps; full compute as it is.

    An interval follows from `nfc`; a threshold is searched for by sampling `seeds` and `conditions`.

    Raises:
        ValueError: a config that is wrong, or a number of full steps that the method cannot have.
    """
    method_from_config(with_any_budget(config))
    check_budget(config, nfc, sampler.steps)
    config = to_begin_with(config)
    budgets = _budget_options(config)
    if "interval" in budgets:
        spacing = spacing_for(nfc, sampler.steps, config.get("phase"), config.get("warmup", WARMUP))
        return method_from_config({**config, **spacing})
    if "threshold" not in budgets and "full_steps" in budgets:
        return method_from_config({**config, "full_steps": nfc})
    method = method_from_config(config)
    if not budgets:
        return method
    return method.with_threshold(calibrate(sampler, method, nfc, seeds, conditions, known, tell=tell))


@dataclass
class Calibration:
    """Thresholds that were tried for one method, and the mean number of full steps that each gave."""

    tried: dict[float, float] = field(default_factory=dict)

    def nearest(self, nfc: float) -> float:
        """The threshold tried whose mean number of full steps is nearest to `nfc`; of several, the smallest."""
        return min(self.tried, key=lambda threshold: (abs(self.tried[threshold] - nfc), threshold))

    def bracket(self, nfc: float) -> tuple[float, float | None]:
        """The greatest threshold tried that is too small for `nfc`, and the smallest above it that is not, if any."""
        hits = [threshold for threshold, found in self.tried.items() if found == nfc]
        least = min(hits, default=math.inf)
        small = max(threshold for threshold, found in self.tried.items() if found > nfc and threshold < least)
        return small, min((threshold for threshold in self.tried if threshold > small), default=None)


def calibrate(
    sampler: Sampler,
    method: Method,
    nfc: float,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    known: Calibration | None = None,
    most: int = 12,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> float:
    """The smallest threshold at which `method` has `nfc` full steps on average, by bisection on calibration seeds.

    Args:
        sampler: how to sample.
        method: a method whose schedule has a threshold (its present one is where the search begins).
        nfc: mean number of full steps that is wanted.
        seeds: of the calibration samples.
        conditions: their class labels or prompts.
        known, most, tell: as of `smallest_threshold`.

    Raises:
        ValueError: a number of full steps that the method cannot have, or a method without a threshold.
    """
    threshold = getattr(method.schedule, "threshold", None)
    if threshold is None:
        raise ValueError(f"{method.name} has no threshold to calibrate: its schedule is {method.schedule!r}")
    return smallest_threshold(
        lambda threshold: sampler.run(method.with_threshold(threshold), seeds, conditions).nfc,
        nfc, sampler.steps, threshold, getattr(method.schedule, "warmup", 1), known, most, tell,
    )  # fmt: skip


def smallest_threshold(
    count: Callable[[float], float],
    nfc: float,
    steps: int,
    start: float,
    warmup: int,
    known: Calibration | None = None,
    most: int = 12,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> float:
    """The smallest threshold at which `count` gives `nfc` full steps, by bisection.

    A range of thresholds gives the same number. At its lower end no gap between full steps is longer than it has to
    be: a greater threshold lets the same errors grow further, and may spend its last full step on the last of all.
    The range's lower end is found to within 5 percent. The number falls in leaps as the threshold grows, so the
    nearest threshold found within `most` runs is returned where none hits the number.

    Args:
        count: the mean number of full steps of a run with a threshold.
        nfc: the number that is wanted.
        steps: of a run: a threshold of 0 makes them all full.
        start: the threshold at which the search begins.
        warmup: full steps that every run begins with.
        known: runs of the same method to start from; this search's runs are added to it.
        most: runs at the most.
        tell: called after each run with its threshold and its mean number of full steps.

    Raises:
        ValueError: a number of full steps that the method cannot have.
    """
    if not warmup <= nfc <= steps:
        raise ValueError(f"the number of full steps lies between the warm-up, {warmup}, and {steps}; got {nfc}")
    if nfc == steps:
        return 0.0
    calibration = known if known is not None else Calibration()
    calibration.tried.setdefault(0.0, float(steps))
    for _ in range(most):
        small, large = calibration.bracket(nfc)
        if large is not None and calibration.tried[large] == nfc and large <= CLOSE * small:
            break
        threshold = _next(calibration, nfc, start, warmup)
        if threshold in calibration.tried:
            break
        calibration.tried[threshold] = count(threshold)
        tell(threshold, calibration.tried[threshold])
    return calibration.nearest(nfc)


def _next(calibration: Calibration, nfc: float, start: float, warmup: int) -> float:
    """The threshold to try next: midway between one too small and one that is not, or a step towards `nfc`.

    Gaps grow about as the square root of the threshold, which sets the length of such a step.
    """
    small, large = calibration.bracket(nfc)
    if large is None and small == 0:
        return _round(start if start > 0 else 0.1)
    if large is not None and small > 0:
        return _round(math.sqrt(small * large))
    edge = small if large is None else large
    step = (max(calibration.tried[edge] - warmup, 0.5) / max(nfc - warmup, 0.5)) ** 2
    return _round(edge * max(min(step, 5.0), 1.1) if large is None else edge * min(max(step, 0.2), 0.8))


def _round(threshold: float) -> float:
    return float(f"{threshold:.4g}")
