"""Choose the way of storing features that keeps a cache within a memory limit on the device.

Ways are tried in order, and the first one that fits is chosen. The order follows the loss of quality in
benchmarks/LOG.md: packing into bfloat16 loses nothing, int8 little. Blocks and stacks lose little with RFE, RCS and
RFC, more with TaylorSeer. Offloading loses no quality, but transfers may make a cached step as slow as a full one. It
is therefore the last resort, with the same order again, as fewer bytes transfer faster. Options that the user fixed do
not change.

The limit covers the bytes of the cache and of transfers to and from the host. Inside compiled code they include the
inputs and outputs of each unit, which live until the call ends. Unpacked features of the one active unit do not count,
as skipped modules leave memory free.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch.utils._pytree import tree_leaves

from relcache.checks import as_text
from relcache.engine.host import Host
from relcache.forecasters.base import Forecaster
from relcache.memory.estimate import Features, Weight, features_of
from relcache.models.coarse import Granularity, coarsened
from relcache.models.spec import ModelSpec
from relcache.schedules.base import Schedule
from relcache.storage.offload import SHARED_MEMORY, Offload
from relcache.storage.packing import TYPES, CacheDtype

WIDE = (torch.float32, torch.float64)
EXPERT = "transformer_2"  # diffusers' name of the expert that takes over from the first one
NOT_WHERE_COMPILED = (
    "offload='cpu' has no use inside compiled code, which needs all features on the device at once: compile the "
    "blocks and use granularity='block' or 'stack', or do not offload"
)


class Way(NamedTuple):
    """The way of storing features: the size of a unit, the dtype of packed features, and offloading."""

    granularity: Granularity = "module"
    cache_dtype: CacheDtype = "features"
    offload: Offload = "none"

    def __str__(self) -> str:
        packed = "" if self.cache_dtype == "features" else f", {self.cache_dtype}"
        return f"granularity {self.granularity!r}{packed}{', offload' if self.offload == 'cpu' else ''}"


def ways(requested: Way, fixed: Collection[str], wide: bool, movable: bool) -> list[Way]:
    """Return the ways to choose from, the best first, beginning with `requested`.

    Args:
        requested: the user's way.
        fixed: names of its fields that must not change.
        wide: whether features are float32 or wider, and bfloat16 shrinks them.
        movable: whether their device has a memory of its own.
    """
    dtypes: list[CacheDtype] = [requested.cache_dtype]
    if "cache_dtype" not in fixed:
        dtypes += ["bfloat16"] if wide and requested.cache_dtype == "features" else []
        dtypes += ["int8"] if requested.cache_dtype not in TYPES or TYPES[requested.cache_dtype].itemsize > 1 else []
    granularities: tuple[Granularity, ...] = get_args(Granularity)
    coarser = granularities[granularities.index(requested.granularity) :]
    offloads: list[Offload] = [requested.offload]
    if "offload" not in fixed and requested.offload == "none" and movable:
        offloads.append("cpu")
    return [
        Way(granularity, dtype, offload)
        for offload in offloads
        for granularity in (coarser if "granularity" not in fixed else coarser[:1])
        for dtype in dtypes
    ]


@dataclass(frozen=True)
class Option:
    """One way and its bytes of cache: in all, at most on the device at once, and in the host's memory.

    `problem` says why the way is impossible; it is "" for a possible way.
    """

    way: Way
    cache_bytes: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"granularity {self.way.granularity!r}: not possible ({self.problem})"
        on_host = f" and {as_text(self.host_bytes)} in the host's memory" if self.host_bytes else ""
        return f"{self.way}: {as_text(self.device_bytes)} of cache{on_host}"


@dataclass(frozen=True)
class Choice:
    """The choice for a memory limit: the `options` in the order of trial. The last one fits."""

    limit: int
    options: tuple[Option, ...]

    @property
    def chosen(self) -> Option:
        """The option that fits."""
        return self.options[-1]

    @property
    def way(self) -> Way:
        """The way of the chosen option."""
        return self.chosen.way

    def __str__(self) -> str:
        first, begin = self.options[0], f"memory_limit {as_text(self.limit)}: "
        if self.chosen is first:
            return f"{begin}{first}, as asked"
        otherwise = first.problem or f"it would take {as_text(first.device_bytes)}"
        return f"{begin}{self.chosen}; as asked ({first.way}) {otherwise}"


@dataclass(frozen=True)
class Call:
    """A branch's call of a transformer: a key of its shapes, and its arguments by name."""

    host: Host
    spec: ModelSpec
    shapes: Hashable
    inputs: dict[str, Any]

    @property
    def is_wide(self) -> bool:
        """Whether its features may be float32 or wider."""
        dtypes = [leaf.dtype for leaf in tree_leaves(self.inputs) if isinstance(leaf, torch.Tensor) and leaf.ndim > 2]
        return any(dtype in WIDE for dtype in dtypes)


class Chooser:
    """Finds the best way that keeps a cache within a limit, and stores the sizes for each shape of call.

    Args:
        requested: the user's way.
        fixed: names of its fields that must not change.
        forecaster, schedule: those of the session.
    """

    def __init__(self, requested: Way, fixed: Collection[str], forecaster: Forecaster, schedule: Schedule):
        self._requested, self._fixed = requested, fixed
        self._forecaster, self._schedule = forecaster, schedule
        self._known: dict[Hashable, Features | str] = {}

    def choose(self, limit: int, calls: Sequence[Call], movable: bool) -> Choice:
        """Return the best way with at most `limit` bytes on the device for the branches of `calls` together.

        Raises:
            ValueError: there is none; the message has the size of each way.
        """
        options = []
        for way in ways(self._requested, self._fixed, any(call.is_wide for call in calls), movable):
            options.append(option := self.weigh(way, calls))
            if not option.problem and option.device_bytes <= limit:
                return Choice(limit, tuple(options))
        known = "; ".join(dict.fromkeys(map(str, options)))
        kept = f" ({', '.join(sorted(self._fixed))} kept as given)" if self._fixed else ""
        raise ValueError(
            f"nothing keeps the cache within memory_limit {as_text(limit)}{kept}: {known}. Give a greater limit, a "
            "lower order, a smaller picture or a smaller batch, or disable() relcache"
        )

    def weigh(self, way: Way, calls: Sequence[Call]) -> Option:
        """Return the bytes of a `way`. Experts that run one after the other do not add up."""
        by_expert: dict[bool, list[Weight]] = {True: [], False: []}
        for call in calls:
            features = self._features(call, way.granularity)
            if isinstance(features, str):
                return Option(way, problem=features)
            weight = features.weight(way.cache_dtype, way.offload)
            if features.inside_compiled_code(call.host.present_model()):
                if weight.total > weight.resident:
                    return Option(way, problem=NOT_WHERE_COMPILED)
                weight = weight._replace(moving=weight.moving + features.lent)
            by_expert[call.host.name == EXPERT].append(weight)
        together = [weights for weights in by_expert.values() if weights]
        total = max(sum(weight.total for weight in weights) for weights in together)
        resident = max(sum(weight.resident for weight in weights) for weights in together)
        moving = max(weight.moving for weights in together for weight in weights)
        return Option(way, total, resident + moving, total - resident)

    def _features(self, call: Call, granularity: Granularity) -> Features | str:
        """Return one branch's features, or the reason why they cannot be determined."""
        key = (call.host.index, call.shapes, granularity)
        model = call.host.present_model()
        if key not in self._known:
            try:
                spec = coarsened(call.spec, model, granularity)
                self._known[key] = features_of(model, spec, self._forecaster, self._schedule, call.inputs)
            except Exception as error:  # no coarse units, or a forward that needs values
                self._known[key] = str(error) or type(error).__name__
        return self._known[key]


def has_own_memory(device: torch.device) -> bool:
    """Return whether features on `device` can be offloaded; a meta device may represent such a device."""
    return device.type == "meta" or device.type not in SHARED_MEMORY
