"""Who races: methods at each granularity and peers, each with a budget that gives it a number of full steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import nn

from relcache.api import enable
from relcache.bench.comparison.entries import Entry
from relcache.bench.sampling.budgets import (
    WARMUP,
    TriedThresholds,
    count_full_steps,
    interval_for,
    smallest_threshold,
    with_any_budget,
)
from relcache.bench.speed.peers import Peer
from relcache.method import Method
from relcache.methods import method_from_config
from relcache.models import ModelSpec
from relcache.schedules import ErrorBudget, Growing, Interval
from relcache.session.components import find_transformers

NEVER = 1e9  # a threshold that no error reaches


@dataclass(frozen=True)
class Contestant:
    """A way to skip work.

    Attributes:
        name: what the table calls it.
        enabled: a context in which a pipeline, or a bare transformer, does.
        is_peer: whether it is another library's.
        budget: its interval or threshold, by that name.
    """

    name: str
    enabled: Callable[[Any], AbstractContextManager[Any]]
    is_peer: bool = False
    budget: Mapping[str, float] = field(default_factory=dict)


class Named(NamedTuple):
    """A method at one granularity: a name that says both, and its config."""

    name: str
    config: Mapping[str, Any]


def methods_at(entries: Sequence[Entry], granularities: Sequence[str]) -> list[Named]:
    """Each method at each granularity, or at its own alone if it names one.

    Raises:
        ValueError: a method without caching, or an unknown granularity.
    """
    found = []
    for granularity in granularities:
        for entry in entries:
            own = "granularity" in entry.config
            if entry.fixed and str(entry.config.get("method")).lower() != "full":
                raise ValueError(f"{entry.name} has a budget of its own, which --nfc is to give: leave that out")
            if own and granularity != granularities[0]:
                continue
            config = dict(entry.config) if own else {**entry.config, "granularity": granularity}
            if method_from_config(with_any_budget(config)).name == "full":
                raise ValueError("full compute is in the table in any case: leave it out of --methods")
            found.append(Named(entry.name if own else f"{entry.name}, {granularity}", config))
    return found


def ours(name: str, method: Method, steps: int | None = None) -> Contestant:
    """A method with the interval or threshold that it has; `steps` are those of a bare transformer's loop."""
    budgets = {key: getattr(method.schedule, key, None) for key in ("interval", "threshold")}
    budget = {key: value for key, value in budgets.items() if value is not None and value != NEVER}
    return Contestant(name, lambda model: enable(model, method, num_inference_steps=steps), budget=budget)


def held_to(method: Method, interval: int, steps: int, warmup: int = WARMUP) -> Method:
    """A method with as many full steps of `steps` as the interval has, at the same places where it has none of its own.

    An error budget measures its signal at each step, and is held to the interval by its longest gap.
    """
    schedule = method.schedule
    if isinstance(schedule, Growing):
        return method.with_budget(count_full_steps(interval, steps, None, warmup))
    if isinstance(schedule, ErrorBudget):
        schedule = replace(schedule, threshold=NEVER, warmup=warmup, longest_gap=interval, full_last=0)
    elif isinstance(schedule, Interval):
        schedule = replace(schedule, interval=interval, warmup=warmup)
    return replace(method, schedule=schedule)


def peer_with(peer: Peer, budget: float, spec: ModelSpec, steps: int) -> Contestant:
    """A peer with an interval or threshold."""
    kind = "threshold" if peer.has_threshold else "interval"
    return Contestant(
        peer.name, lambda model: peer.enable(only_transformer(model), spec, budget, steps), True, {kind: budget}
    )


def peer_at(
    peer: Peer,
    nfc: int,
    steps: int,
    spec: ModelSpec,
    count: Callable[[Contestant], float],
    known: TriedThresholds,
    tell: Callable[[float, float], None] = lambda threshold, nfc: None,
) -> Contestant:
    """A peer at the interval or threshold whose number of full steps is `nfc`, or nearest to it.

    `count` runs a contestant and returns its number of full steps; `known` are the thresholds of this peer that were
    tried, to which those tried now are added.
    """
    if not peer.has_threshold:
        return peer_with(peer, interval_for(nfc, steps, peer.phase, peer.warmup), spec, steps)
    threshold = smallest_threshold(
        lambda threshold: count(peer_with(peer, threshold, spec, steps)), nfc, steps, peer.start, peer.warmup, known,
        tell=tell,
    )  # fmt: skip
    return peer_with(peer, threshold, spec, steps)


def only_transformer(pipeline_or_model: Any) -> nn.Module:
    """The transformer of a pipeline, or the bare one.

    Raises:
        ValueError: the pipeline has several.
    """
    models, _ = find_transformers(pipeline_or_model)
    if len(models) > 1:
        raise ValueError(f"a pipeline with one transformer can be timed; this one has {', '.join(models)}")
    return next(iter(models.values()))
