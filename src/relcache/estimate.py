"""How much a cache will hold, before a run: a copy of the model is called without values, and its features are kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

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


def estimate_bytes(
    model: nn.Module,
    spec: ModelSpec,
    forecaster: Forecaster,
    schedule: Schedule,
    inputs: dict[str, Any],
    branches: int,
) -> int:
    """Bytes held after as many full steps as fill the cache, called with `inputs` for each of `branches`."""

    def fill(model: nn.Module, inputs: dict[str, Any]) -> int:
        for unit in spec.units(model):
            if not unit.part.streams and not unit.part.entries:
                module = next(iter(unit.modules.values()))
                module.forward = _or_like_its_input(module.forward)
        host = Host("", model, spec, place=0, first_unit=0)
        cache = Cache(host.unit_names, host.parts, {0}, forecaster, schedule, note=lambda key, text: None)
        host.swap_units(cache, model)
        rows = count_rows(inputs.get(host.sample))
        cache.request = Request(None, None, rows)
        for _ in range(forecaster.expansion.order + 1):
            cache.open_step(full=True)
            for branch in range(branches):
                cache.open_call(host.place, str(branch), rows, Work(host.place, ((), {})))
                model(**inputs)
                cache.close_call()
        return cache.request.cache_bytes

    return without_values(lambda copied: fill(copied(model), copied(inputs)))


def _or_like_its_input(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, or a tensor like its input where it cannot run without values: experts chosen by routing."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            return torch.empty_like(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

    return run
