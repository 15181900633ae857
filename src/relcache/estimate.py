"""How much a cache will hold, before a run: a copy of the model is called without values, and its features are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
from relcache.offload import Mover, Offload
from relcache.request import Request, Work, bytes_of
from relcache.schedules.base import Schedule
from relcache.storage import CacheDtype
from relcache.store import Shared, Store, tensors, tensors_on_device


class Weight(NamedTuple):
    """Bytes of one branch's features: all that are held, those of them on the device between the steps, and the most
    that lie there for a time, on their way from or to the host's memory."""

    held: int
    resident: int
    moving: int


def weigh(
    model: nn.Module,
    spec: ModelSpec,
    forecaster: Forecaster,
    schedule: Schedule,
    inputs: dict[str, Any],
    kept: Sequence[tuple[CacheDtype, Offload]],
) -> list[Weight]:
    """What one branch called with `inputs` holds, when as many full steps as fill the cache are over, in each way that
    `kept` names: what features are packed into, and where they lie."""

    def weights(model: nn.Module, inputs: dict[str, Any]) -> list[Weight]:
        recorder = _Recorder()
        fill(model, spec, forecaster, schedule, inputs, store=recorder)
        return [_replayed(recorder.units, Store(dtype, offload, Mover())) for dtype, offload in kept]

    return without_values(lambda copied: weights(copied(model), copied(inputs)))


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
    store: Store | None = None,
) -> Filled:
    """Call `model`, a copy without values, in as many full steps as fill the cache."""
    for unit in spec.units(model):
        if not unit.part.streams and not unit.part.entries:
            module = next(iter(unit.modules.values()))
            module.forward = _or_like_its_input(module.forward)
    host = Host("", model, spec, place=0, first_unit=0)
    store = store or Store(cache_dtype)
    cache = Cache(host.unit_names, host.parts, {0}, forecaster, schedule, note=lambda key, text: None, store=store)
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


class _Recorder(Store):
    """Keeps states as they are, and remembers what was put in the last call: for each unit its states, each with the
    features that others hold as well."""

    def __init__(self) -> None:
        super().__init__()
        self.units: list[list[tuple[Any, Collection[Tensor]]]] = []
        self._shared: Shared | None = None
        self._ended = False

    def put(self, state: Any, lent: Collection[Tensor], shared: Shared | None = None) -> Any:
        if self._ended:
            self.units, self._ended = [], False
        if shared is not self._shared or not self.units:
            self.units.append([])
            self._shared = shared
        self.units[-1].append((state, lent))
        return state

    def close(self) -> None:
        self._ended = True


def _replayed(units: list[list[tuple[Any, Collection[Tensor]]]], store: Store) -> Weight:
    """What the states of `units` weigh in `store`, after two full steps."""
    known: list[list[Any]] = [[] for _ in units]
    for _ in range(2):
        for place, unit in enumerate(units):
            store.prefetch(known[place : place + 2])
            for state in known[place]:
                store.get(state)
            shared: Shared = {}
            known[place] = [store.put(state, lent, shared) for state, lent in unit]
        store.close()
    return Weight(bytes_of(tensors(known)), bytes_of(tensors_on_device(known)), store.most_moving)


def _or_like_its_input(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, or a tensor like its input where it cannot run without values: experts chosen by routing."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            return torch.empty_like(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

    return run
