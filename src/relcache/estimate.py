"""How much a cache will hold, before a run: a copy of the model is called without values, and its features are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.cache import Cache
from relcache.forecasters.base import Forecaster
from relcache.host import Host, count_rows
from relcache.meta import without_values
from relcache.models.base import ModelSpec
from relcache.request import Request, Work
from relcache.schedules.base import Schedule
from relcache.storage import CacheDtype


def estimate_bytes(
    model: nn.Module,
    spec: ModelSpec,
    forecaster: Forecaster,
    schedule: Schedule,
    inputs: dict[str, Any],
    branches: int,
    cache_dtype: CacheDtype = "features",
) -> int:
    """Bytes held after as many full steps as fill the cache, called with `inputs` for each of `branches`."""

    def held(model: nn.Module, inputs: dict[str, Any]) -> int:
        return fill(model, spec, forecaster, schedule, inputs, branches, cache_dtype).held_bytes

    return without_values(lambda copied: held(copied(model), copied(inputs)))


class Filled(NamedTuple):
    """A model whose cache is full: most bytes that it held, and a call of the first branch in a cached step."""

    held_bytes: int
    call: Callable[[], Any]


def fill(
    model: nn.Module,
    spec: ModelSpec,
    forecaster: Forecaster,
    schedule: Schedule,
    inputs: dict[str, Any],
    branches: int = 1,
    cache_dtype: CacheDtype = "features",
) -> Filled:
    """Call `model`, a copy without values, in as many full steps as fill the cache."""
    for unit in spec.units(model):
        if not unit.part.streams and not unit.part.entries:
            module = next(iter(unit.modules.values()))
            module.forward = _or_like_its_input(module.forward)
    host = Host("", model, spec, place=0, first_unit=0)
    gauges = {0: host.gauge} if schedule.needs_signal else {}
    cache = Cache(
        host.unit_names, host.parts, gauges, forecaster, schedule, note=lambda key, text: None, dtype=cache_dtype
    )
    host.swap_units(cache, model)
    rows = count_rows(inputs.get(host.sample))
    cache.request = Request(None, None, rows)

    def call(branch: int) -> None:
        cache.open_call(host.place, str(branch), rows, Work(host.place, ((), {})))
        model(**inputs)
        cache.close_call()

    for _ in range(forecaster.expansion.order + 1):
        cache.open_step(full=True)
        for branch in range(branches):
            call(branch)

    def cached() -> None:
        cache.open_step(full=False)
        call(0)

    return Filled(cache.request.cache_bytes, cached)


def _or_like_its_input(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, or a tensor like its input where it cannot run without values: experts chosen by routing."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            return torch.empty_like(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

    return run
