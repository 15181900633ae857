"""The contestants that are timed: methods at each granularity, and rivals, each at a number of full steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from relcache.api import enable
from relcache.bench.comparison.entries import Entry
from relcache.bench.rivals.base import Rival
from relcache.bench.sampling.budgets import (
    WARMUP,
    TriedThresholds,
    count_full_steps,
    interval_for,
    smallest_threshold,
    with_any_budget,
)
from relcache.method import Method
from relcache.methods import method_from_config
from relcache.schedules import ErrorBudget, Growing, Interval

NEVER = 1e9  # a threshold that no error reaches


@dataclass(frozen=True)
class Contestant:
    """A method or a rival.

    Attributes:
        name: its name in the table.
        enabled: returns a context that makes a bare transformer skip work.
        is_rival: whether it is not a method of relcache.
        budget: its "interval" or "threshold".
    """

    name: str
    enabled: Callable[[Any], AbstractContextManager[Any]]
    is_rival: bool = False
    budget: Mapping[str, float] = field(default_factory=dict)


class NamedMethod(NamedTuple):
    """A method at one granularity: a name for both, and its config."""

    name: str
    config: Mapping[str, Any]


def methods_at(entries: Sequence[Entry], granularities: Sequence[str]) -> list[NamedMethod]:
    """Return each method at each granularity, or only at its own if it has one.

    Raises:
        ValueError: a method has a budget or caches nothing, or a granularity is unknown.
    """
    found = []
    for granularity in granularities:
        for entry in entries:
            own = "granularity" in entry.config
            if entry.fixed and str(entry.config.get("method")).lower() != "full":
                raise ValueError(f"{entry.name} has a budget of its own: leave that out, --nfc sets the budget")
            if own and granularity != granularities[0]:
                continue
            config = dict(entry.config) if own else {**entry.config, "granularity": granularity}
            if method_from_config(with_any_budget(config)).name == "full":
                raise ValueError("full compute is always in the table: leave it out of --methods")
            found.append(NamedMethod(entry.name if own else f"{entry.name}, {granularity}", config))
    return found


def ours(name: str, method: Method, steps: int | None = None) -> Contestant:
    """Return a method with its own budget as a contestant; `steps` is the length of a bare transformer's loop."""
    budgets = {key: getattr(method.schedule, key, None) for key in ("interval", "threshold")}
    budget = {key: value for key, value in budgets.items() if value is not None and value != NEVER}
    return Contestant(name, lambda model: enable(model, method, num_inference_steps=steps), budget=budget)


def at_interval(method: Method, interval: int, steps: int, warmup: int = WARMUP) -> Method:
    """Return a method with the full steps of an interval; with growing gaps it has as many, but at other steps.

    An error budget still measures its signal at each step, but its longest gap decides.
    """
    schedule = method.schedule
    if isinstance(schedule, Growing):
        return method.with_budget(full_steps=count_full_steps(interval, steps, None, warmup))
    if isinstance(schedule, ErrorBudget):
        schedule = replace(schedule, threshold=NEVER, warmup=warmup, longest_gap=interval, full_last=0)
    elif isinstance(schedule, Interval):
        schedule = replace(schedule, interval=interval, warmup=warmup)
    return replace(method, schedule=schedule)


def rival_with(rival: Rival, options: Mapping[str, Any], steps: int) -> Contestant:
    """Return a rival with its budget as a contestant."""
    budget = {rival.budget: options[rival.budget]}
    return Contestant(rival.title, lambda model: rival.enabled(model, options, steps), True, budget)


def rival_at(
    rival: Rival,
    nfc: int,
    steps: int,
    count: Callable[[Contestant], float],
    known: TriedThresholds,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> Contestant:
    """Return a rival at the interval or threshold that gives the number of full steps nearest to `nfc`.

    `count` runs a contestant and returns its number of full steps. `known` collects the thresholds tried.
    """
    if rival.budget == "interval":
        return rival_with(rival, {"interval": interval_for(nfc, steps, rival.phase, rival.warmup)}, steps)
    threshold = smallest_threshold(
        lambda threshold: count(rival_with(rival, {"threshold": threshold}, steps)), nfc, steps, rival.start,
        rival.warmup, known, tell=tell,
    )  # fmt: skip
    return rival_with(rival, {"threshold": threshold}, steps)
