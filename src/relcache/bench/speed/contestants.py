"""The contestants of a race: methods at each granularity, and peers, each at a number of full steps."""

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
    """A method or a peer.

    Attributes:
        name: its name in the table.
        enabled: returns a context that makes a pipeline or a bare transformer skip work.
        is_peer: whether another library provides it.
        budget: its "interval" or "threshold".
    """

    name: str
    enabled: Callable[[Any], AbstractContextManager[Any]]
    is_peer: bool = False
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


def peer_with(peer: Peer, budget: float, spec: ModelSpec, steps: int) -> Contestant:
    """Return a peer with an interval or threshold as a contestant."""
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
    """Return a peer at the interval or threshold that gives the number of full steps nearest to `nfc`.

    `count` runs a contestant and returns its number of full steps. `known` collects the thresholds tried for this peer.
    """
    if not peer.has_threshold:
        return peer_with(peer, interval_for(nfc, steps, peer.phase, peer.warmup), spec, steps)
    threshold = smallest_threshold(
        lambda threshold: count(peer_with(peer, threshold, spec, steps)), nfc, steps, peer.start, peer.warmup, known,
        tell=tell,
    )  # fmt: skip
    return peer_with(peer, threshold, spec, steps)


def only_transformer(pipeline_or_model: Any) -> nn.Module:
    """Return the transformer of a pipeline, or the bare transformer; raise ValueError if there are several."""
    models, _ = find_transformers(pipeline_or_model)
    if len(models) > 1:
        raise ValueError(f"only a pipeline with one transformer can be timed; this pipeline has {', '.join(models)}")
    return next(iter(models.values()))
