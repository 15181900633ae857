"""Find the interval or the threshold at which a method has a given number of full steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relcache.bench.sampling.batches import Sampler
from relcache.method import Method
from relcache.methods import BY_NAME, method_from_config

WARMUP = 2  # full steps at the beginning of every run, unless its method says otherwise
CLOSE_RATIO = 1.05  # the search for the smallest threshold ends at two thresholds of this ratio
FLOOR_RATIO = 1000.0  # of two thresholds with the same number of full steps: greater ones will not give fewer
FIRST_SEED = 1_000_000  # calibration never uses the seeds that results are reported on
BUDGETS = ("interval", "threshold", "full_steps", "speedup", "schedule")  # options that decide the number of full steps


def calibration_seeds(number: int) -> list[int]:
    """Return the seeds of `number` calibration samples; no result is reported on them."""
    return list(range(FIRST_SEED, FIRST_SEED + number))


def count_full_steps(interval: int, steps: int, phase: int | None = None, warmup: int = WARMUP) -> int:
    """Return how many of `steps` steps an interval computes in full."""
    first = warmup - 1 + interval if phase is None else phase
    return warmup + len(range(first, steps, interval))


def interval_for(nfc: int, steps: int, phase: int | None = None, warmup: int = WARMUP) -> int:
    """Return the interval that gives the number of full steps nearest to `nfc`; some numbers are out of reach."""
    return min(range(1, steps + 1), key=lambda interval: abs(count_full_steps(interval, steps, phase, warmup) - nfc))


def spacing_for(nfc: int, steps: int, phase: int | None = None, warmup: int = WARMUP) -> dict[str, int]:
    """Return the interval that gives `nfc` full steps, with a phase if the published phase gives another number.

    The phase is the nearest to the published one that gives `nfc`; its first gap is less than two intervals. A `phase`
    that is passed is kept. If no phase gives `nfc`, the interval gives the nearest number.
    """
    interval = interval_for(nfc, steps, phase, warmup)
    if phase is not None or count_full_steps(interval, steps, None, warmup) == nfc:
        return {"interval": interval}
    exact = [
        (abs(first - published), interval, first)
        for interval in range(2, steps + 1)
        for published in (warmup - 1 + interval,)
        for first in range(warmup, min(published + interval, steps + 1))
        if count_full_steps(interval, steps, first, warmup) == nfc
    ]
    if not exact:
        return {"interval": interval}
    _, interval, first = min(exact)
    return {"interval": interval, "phase": first}


def budgets_of(method: Method) -> dict[str, Any]:
    """Return the options of a method that decide its full steps, as a config has them."""
    options = {name: getattr(method.schedule, name, None) for name in ("interval", "threshold", "phase", "full_steps")}
    return {name: value for name, value in options.items() if isinstance(value, (int, float))}


def _options_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options that the method of `config` takes, by name; none for an unknown method."""
    build = BY_NAME.get(str(config.get("method")).lower())
    return inspect.signature(build).parameters if build else {}


def with_first_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with an order and a threshold for a search to begin with, if its method takes them."""
    options = _options_of(config)
    return {key: value for key, value in (("order", 2), ("threshold", 0.1)) if key in options} | dict(config)


def with_any_budget(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with some interval or threshold if its method takes one, so that the rest can be checked."""
    interval = {"interval": 2} if "interval" in _options_of(config) and "schedule" not in config else {}
    return interval | with_first_values(config)


def _budget_options(config: Mapping[str, Any]) -> list[str]:
    """Return the options that set the full steps of the method of `config`, the usual one first."""
    options = _options_of(config)
    return [name for name in BUDGETS if name in options]


def has_budget(config: Mapping[str, Any]) -> bool:
    """Whether the options of `config` alone decide its full steps, or all steps are full."""
    budgets = _budget_options(config)
    return not budgets or any(name in config for name in budgets)


def check_budget(config: Mapping[str, Any], nfc: float, steps: int) -> None:
    """Check that the method of `config` can have `nfc` of `steps` full steps; full compute passes.

    Raises:
        ValueError: its own options decide them, or it cannot have this number.
    """
    name = str(config.get("method")).lower()
    if name == "full":
        return
    if name == "preset":
        raise ValueError(f"a preset has full steps of its own: do not ask for {nfc:g} beside it")
    if has_budget(config):
        own = next((key for key in BUDGETS if key in config), "options")
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
        raise ValueError(f"the number of full steps is between {least} and {steps}; got {nfc:g}")


def at_budget(
    config: Mapping[str, Any],
    nfc: int,
    sampler: Sampler,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
    known: TriedThresholds | None = None,
) -> Method:
    """Return the method of `config` with the interval or threshold that gives `nfc` full steps.

    Full compute stays as it is. An interval follows from `nfc`. A threshold is found by sampling `seeds`
    and `conditions`.

    Raises:
        ValueError: a wrong config, or a number of full steps that the method cannot have.
    """
    method_from_config(with_any_budget(config))
    check_budget(config, nfc, sampler.steps)
    config = with_first_values(config)
    budgets = _budget_options(config)
    if "interval" in budgets:
        spacing = spacing_for(nfc, sampler.steps, config.get("phase"), config.get("warmup", WARMUP))
        return method_from_config({**config, **spacing})
    if "threshold" not in budgets and "full_steps" in budgets:
        return method_from_config({**config, "full_steps": nfc})
    method = method_from_config(config)
    if not budgets:
        return method
    return method.with_threshold(threshold_for(sampler, method, nfc, seeds, conditions, known, tell=tell))


@dataclass
class TriedThresholds:
    """The thresholds tried for one method, and the mean number of full steps that each gave.

    Attributes:
        tried: those of this search.
        remembered: those of a search that was broken off. This one takes the same way again, without their runs.
    """

    tried: dict[float, float] = field(default_factory=dict)
    remembered: dict[float, float] = field(default_factory=dict)

    def nearest(self, nfc: float) -> float:
        """Return the smallest threshold that gave the number of full steps nearest to `nfc`."""
        return min(self.tried, key=lambda threshold: (abs(self.tried[threshold] - nfc), threshold))

    def is_floor(self, threshold: float) -> bool:
        """Whether a threshold gives no fewer full steps than one that is a thousand times smaller."""
        smaller = [found for tried, found in self.tried.items() if 0 < tried <= threshold / FLOOR_RATIO]
        return bool(smaller) and min(smaller) <= self.tried[threshold]

    def bracket(self, nfc: float) -> tuple[float, float | None]:
        """Return the greatest threshold that is too small for `nfc`, and the next greater one if there is any."""
        hits = [threshold for threshold, found in self.tried.items() if found == nfc]
        least = min(hits, default=math.inf)
        small = max(threshold for threshold, found in self.tried.items() if found > nfc and threshold < least)
        return small, min((threshold for threshold in self.tried if threshold > small), default=None)


def threshold_for(
    sampler: Sampler,
    method: Method,
    nfc: float,
    seeds: Sequence[int],
    conditions: Sequence[int | str],
    known: TriedThresholds | None = None,
    most: int = 12,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> float:
    """Return the smallest threshold at which `method` has `nfc` full steps on average over calibration samples.

    The search begins at the method's own threshold. `known`, `most` and `tell` are as in `smallest_threshold`.

    Raises:
        ValueError: a number of full steps that the method cannot have, or a method without a threshold.
    """
    threshold = getattr(method.schedule, "threshold", None)
    if threshold is None:
        raise ValueError(
            f"{method.name} has no threshold to calibrate: rfc and rcs have one. For other methods --full-steps finds "
            f"a plan; the schedule of this one is {method.schedule!r}"
        )
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
    known: TriedThresholds | None = None,
    most: int = 12,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> float:
    """Return the smallest threshold at which `count` gives `nfc` full steps, by bisection, to within 5 percent.

    A range of thresholds gives the same number. The smallest keeps the gaps between full steps short: greater
    thresholds let errors grow further, and may spend the last full step on the last step. The number falls in jumps as
    the threshold grows; if no run hits it, the threshold with the nearest number is returned. The search ends where
    greater thresholds give no fewer full steps, as in a method whose gaps are bounded.

    Args:
        count: returns the mean number of full steps of a run with a threshold.
        nfc: the number wanted.
        steps: steps of a run; a threshold of 0 makes them all full.
        start: the threshold at which the search begins.
        warmup: full steps that every run begins with.
        known: earlier runs of the same method; the search adds its runs.
        most: the most runs.
        tell: called after each run with its threshold and its mean number of full steps.

    Raises:
        ValueError: a number of full steps that the method cannot have.
    """
    if not warmup <= nfc <= steps:
        raise ValueError(f"the number of full steps is between the warm-up, {warmup}, and {steps}; got {nfc}")
    if nfc == steps:
        return 0.0
    known = TriedThresholds() if known is None else known
    known.tried.setdefault(0.0, float(steps))
    for _ in range(most):
        small, large = known.bracket(nfc)
        if large is not None and known.tried[large] == nfc and large <= CLOSE_RATIO * small:
            break
        if large is None and known.is_floor(small):
            break
        threshold = _next(known, nfc, start, warmup)
        if threshold in known.tried:
            break
        if threshold in known.remembered:
            known.tried[threshold] = known.remembered[threshold]
            continue
        known.tried[threshold] = count(threshold)
        tell(threshold, known.tried[threshold])
    return known.nearest(nfc)


def _next(known: TriedThresholds, nfc: float, start: float, warmup: int) -> float:
    """Return the threshold to try next: midway within the bracket, or a step towards `nfc`, to four digits.

    Gaps grow about as the square root of the threshold, which sets the length of such a step.
    """
    small, large = known.bracket(nfc)
    if large is None and small == 0:
        threshold = start if start > 0 else 0.1
    elif large is not None and small > 0:
        threshold = math.sqrt(small * large)
    else:
        edge = small if large is None else large
        step = (max(known.tried[edge] - warmup, 0.5) / max(nfc - warmup, 0.5)) ** 2
        threshold = edge * (max(min(step, 5.0), 1.1) if large is None else min(max(step, 0.2), 0.8))
    return float(f"{threshold:.4g}")
