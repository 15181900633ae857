"""Estimate the size of a cache before a run, by calling a copy of the model without values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.engine.cache import Cache
from relcache.engine.features import share_memory, with_newest_of
from relcache.engine.host import Host, count_rows, with_ancestors
from relcache.engine.state import Request, Rules, Work, bytes_of
from relcache.forecasters.base import Forecaster
from relcache.forecasters.expansion import Expansion
from relcache.models.spec import ModelSpec
from relcache.schedules.base import Schedule
from relcache.shapes.meta import without_values
from relcache.storage.offload import Mover, Offload
from relcache.storage.packing import CacheDtype
from relcache.storage.store import Shared, Store, tensors, tensors_on_device

Put = tuple[Any, Sequence[Tensor]]  # a state, and the features that others also reference


class Weight(NamedTuple):
    """Bytes of a branch's features: in all, resident on the device between steps, and at most in transfer at once."""

    total: int
    resident: int
    moving: int


class Features:
    """The states of each unit in one branch's full cache, without values."""

    def __init__(self, units: list[list[Put]], names: Sequence[str]):
        self._units, self._names = units, names
        self._weights: dict[tuple[CacheDtype, Offload], Weight] = {}

    def weight(self, dtype: CacheDtype, offload: Offload) -> Weight:
        """Return their bytes when packed into `dtype` and offloaded by `offload`."""
        if (dtype, offload) not in self._weights:
            with torch.no_grad():
                self._weights[dtype, offload] = self._weigh(Store(dtype, offload, Mover()))
        return self._weights[dtype, offload]

    @property
    def lent(self) -> int:
        """Bytes of the units' inputs and outputs."""
        return bytes_of([value for unit in self._units for _, lent in unit for value in lent])

    def inside_compiled_code(self, model: nn.Module) -> bool:
        """Return whether a module around a unit of `model` is compiled."""
        around = ["", *with_ancestors(name.rpartition(".")[0] for name in self._names)]
        return any(model.get_submodule(path)._compiled_call_impl is not None for path in around)

    def _weigh(self, store: Store) -> Weight:
        known: list[list[Any]] = [[] for _ in self._units]
        moving = 0
        for _ in range(2 if store.offload == "cpu" else 1):  # the second pass loads what the first one offloaded
            for index, unit in enumerate(self._units):
                store.prefetch(known[index : index + 2])
                for state in known[index]:
                    store.get(state)
                shared: Shared = {}
                known[index] = [store.put(state, lent, shared) for state, lent in unit]
            moving = max(moving, store.most_moving)
            store.close()
        return Weight(bytes_of(tensors(known)), bytes_of(tensors_on_device(known)), moving)


def features_of(
    model: nn.Module, spec: ModelSpec, forecaster: Forecaster, schedule: Schedule, inputs: dict[str, Any]
) -> Features:
    """Return a branch's features for a call with `inputs`, from one forward of a copy of `model` without values."""

    def recorded(model: nn.Module, inputs: dict[str, Any]) -> Features:
        recorder = _Recorder()
        enabled = _Enabled(model, spec, forecaster, schedule, inputs, recorder)
        enabled.step(True)
        names = [name for unit in spec.units(model) for name in unit.modules]
        return Features([filled_unit(unit) for unit in recorder.units], names)

    def filled_unit(unit: list[Put]) -> list[Put]:
        """Return a unit's states after enough full steps; an input shared with the error signal is stored once."""
        states = [(filled(state, lent), lent) for state, lent in unit]
        signals = [(stack, value) for stack, (value, *others) in states if not others]
        for stack, value in signals:
            states = [
                (with_newest_of(stack, state, lent[0]) if share_memory(lent[0], value) else state, lent)
                for state, lent in states
            ]
        return states

    predictor = schedule.predictor(forecaster.expansion)

    def filled(state: Any, lent: Sequence[Tensor]) -> Any:
        """Return the `state` of the first full step after enough more; only an error signal lends one tensor."""
        expansion = predictor if len(lent) == 1 else forecaster.expansion
        update = predictor.extend if len(lent) == 1 else forecaster.update
        for step in range(1, expansion.order + 1):
            state = update(state, range(step, -1, -1), *lent)
        return state

    return without_values(lambda copied: recorded(copied(model), copied(inputs)))


class Filled(NamedTuple):
    """A model with a full cache: its greatest size, and a function that calls the first branch in a cached step."""

    cache_bytes: int
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
    """Call `model`, a copy without values, in enough full steps to fill its cache."""
    enabled = _Enabled(model, spec, forecaster, _Unread(schedule), inputs, Store(cache_dtype))
    for _ in range(max(forecaster.expansion.order, schedule.predictor(forecaster.expansion).order) + 1):
        enabled.step(True, branches)
    return Filled(enabled.request.cache_bytes, lambda: enabled.step(None))


class _Unread(Schedule):
    """A schedule that computes the error without reading it, as there are no values. Every step is cached."""

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self.needs_signal, self.token_stride = schedule.needs_signal, schedule.token_stride  # type: ignore[misc]

    def predictor(self, expansion: Expansion) -> Expansion:
        return self._schedule.predictor(expansion)

    def wants_signal(self, step: int) -> bool:
        return self.needs_signal

    def error(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        self._schedule.error(numerator, denominator)
        return torch.zeros((), device="cpu")

    def wants_full(self, state: Any, step: int, error: float | None) -> bool:
        return False


class _Enabled:
    """A copy of a model without values, with a cache."""

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        forecaster: Forecaster,
        schedule: Schedule,
        inputs: dict[str, Any],
        store: Store,
    ):
        for unit in spec.units(model):
            if not unit.part.streams and not unit.part.entries:
                module = next(iter(unit.modules.values()))
                module.forward = _with_fallback(module.forward)
        host = Host("", model, spec, index=0, first_unit=0)
        self._model, self._inputs = model, inputs
        self._cache = Cache(
            host.unit_names, host.parts, {0: host.gauge}, lambda key, text: None, store, schedule.needs_signal
        )
        host.swap_units(self._cache, model)
        self.request = self._cache.request = Request(
            Rules(forecaster, schedule), None, None, count_rows(inputs.get(host.sample))
        )

    def step(self, full: bool | None, branches: int = 1) -> None:
        """Make a full or cached step; with None the schedule decides."""
        self.request.open_step(full)
        for branch in range(branches):
            self._cache.open_call(0, str(branch), self.request.batch, Work(0, None, ((), {})))
            self._model(**self._inputs)
            self._cache.close_call()


class _Recorder(Store):
    """Stores states unchanged, and records those of each unit with the lent features."""

    def __init__(self) -> None:
        super().__init__()
        self.units: list[list[Put]] = []
        self._shared: Shared | None = None

    def put(self, state: Any, lent: Sequence[Tensor], shared: Shared | None = None) -> Any:
        if not self.units or shared is not self._shared:
            self.units.append([])
            self._shared = shared
        self.units[-1].append((state, lent))
        return state


def _with_fallback(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a `forward` that returns a tensor like its input if it fails without values, as routed experts do."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception:
            return torch.empty_like(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))

    return run
