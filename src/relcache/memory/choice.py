"""The choice of how features are held, so that a cache stays within a limit of memory on the device.

Ways are tried in an order, and the first that fits is taken. What it costs in quality comes first, by what has been
measured (benchmarks/LOG.md): features packed into bfloat16 lose nothing, in int8 little; blocks and stacks little with
RFE, RCS and RFC, more with TaylorSeer. The host's memory costs no quality, but features that travel at every step may
make a cached step as slow as a full one, so it is the last resort; it goes through the same order once more, as fewer
bytes are fewer to move. What the user has fixed is kept.

Counted is what the cache holds, and what is on its way from or to the host's memory; of units inside compiled code also
what each was given and has returned, as these are kept until the call ends. Not counted is what the features of the
one unit at work take for a time while they are unpacked: modules that are skipped leave memory free.
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
EXPERT = "transformer_2"  # diffusers' name for the expert that takes over from the first; others work beside it


NOT_WHERE_COMPILED = (
    "offload='cpu' has no use inside compiled code, which would need all features on the device at once: compile the "
    "blocks and use granularity='block' or 'stack', or do not offload"
)


class Way(NamedTuple):
    """How features are held: what a unit is, what they are packed into, and where they lie between the steps."""

    granularity: Granularity = "module"
    cache_dtype: CacheDtype = "features"
    offload: Offload = "none"

    def __str__(self) -> str:
        packed = "" if self.cache_dtype == "features" else f", {self.cache_dtype}"
        return f"granularity {self.granularity!r}{packed}{', offload' if self.offload == 'cpu' else ''}"


def ways(asked: Way, fixed: Collection[str], wide: bool, movable: bool) -> list[Way]:
    """What may be chosen, the best first, beginning with what was `asked` for.

    Args:
        fixed: names of the fields of `asked` that stay as they are.
        wide: whether features are float32 or wider, so that bfloat16 makes them smaller.
        movable: whether they lie on a device with a memory of its own.
    """
    dtypes: list[CacheDtype] = [asked.cache_dtype]
    if "cache_dtype" not in fixed:
        dtypes += ["bfloat16"] if wide and asked.cache_dtype == "features" else []
        dtypes += ["int8"] if asked.cache_dtype not in TYPES or TYPES[asked.cache_dtype].itemsize > 1 else []
    granularities: tuple[Granularity, ...] = get_args(Granularity)
    coarser = granularities[granularities.index(asked.granularity) :]
    places: list[Offload] = [asked.offload]
    if "offload" not in fixed and asked.offload == "none" and movable:
        places.append("cpu")
    return [
        Way(granularity, dtype, place)
        for place in places
        for granularity in (coarser if "granularity" not in fixed else coarser[:1])
        for dtype in dtypes
    ]


@dataclass(frozen=True)
class Option:
    """One way, and the bytes that the cache holds with it: all, at most on the device at once, in the host's memory.

    `problem` says why it cannot be done, "" where it can.
    """

    way: Way
    held_bytes: int = 0
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
    """What a memory limit chooses: `options` in the order in which they were tried, the last of which fits."""

    limit: int
    options: tuple[Option, ...]

    @property
    def chosen(self) -> Option:
        """The option that fits."""
        return self.options[-1]

    @property
    def way(self) -> Way:
        """Granularity, cache_dtype and offload of the chosen option."""
        return self.chosen.way

    def __str__(self) -> str:
        asked, begin = self.options[0], f"memory_limit {as_text(self.limit)}: "
        if self.chosen is asked:
            return f"{begin}{asked}, as asked"
        otherwise = asked.problem or f"it would hold {as_text(asked.device_bytes)}"
        return f"{begin}{self.chosen}; as asked ({asked.way}) {otherwise}"


@dataclass(frozen=True)
class Call:
    """A call that one branch makes of a transformer: what tells it from calls of other shapes, and its arguments."""

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
    """Finds the way that keeps within a limit; remembers what it has found of calls of each shape.

    Args:
        asked: the way that was asked for.
        fixed: names of its fields that stay as they are.
    """

    def __init__(self, asked: Way, fixed: Collection[str], forecaster: Forecaster, schedule: Schedule):
        self._asked, self._fixed = asked, fixed
        self._forecaster, self._schedule = forecaster, schedule
        self._known: dict[Hashable, Features | str] = {}

    def choose(self, limit: int, calls: Sequence[Call], movable: bool) -> Choice:
        """The best way in which the branches that make `calls` hold no more than `limit` bytes on the device together.

        Raises:
            ValueError: there is none; the message says what each would hold.
        """
        options = []
        for way in ways(self._asked, self._fixed, any(call.is_wide for call in calls), movable):
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
        """What is held in this `way`. An expert that takes over from another transformer takes its place."""
        found: dict[bool, list[Weight]] = {True: [], False: []}
        for call in calls:
            features = self._features(call, way.granularity)
            if isinstance(features, str):
                return Option(way, problem=features)
            weight = features.weight(way.cache_dtype, way.offload)
            if features.inside_compiled_code(call.host.present_model()):
                if weight.held > weight.resident:
                    return Option(way, problem=NOT_WHERE_COMPILED)
                weight = weight._replace(moving=weight.moving + features.lent)
            found[call.host.name == EXPERT].append(weight)
        together = [weights for weights in found.values() if weights]
        held = max(sum(weight.held for weight in weights) for weights in together)
        resident = max(sum(weight.resident for weight in weights) for weights in together)
        moving = max(weight.moving for weights in together for weight in weights)
        return Option(way, held, resident + moving, held - resident)

    def _features(self, call: Call, granularity: Granularity) -> Features | str:
        """Of one branch; text that says why it cannot be found out."""
        key = (call.host.place, call.shapes, granularity)
        model = call.host.present_model()
        if key not in self._known:
            try:
                spec = coarsened(call.spec, model, granularity)
                self._known[key] = features_of(model, spec, self._forecaster, self._schedule, call.inputs)
            except Exception as error:  # blocks that cannot be taken whole, a forward that cannot run without values
                self._known[key] = str(error) or type(error).__name__
        return self._known[key]


def has_own_memory(device: torch.device) -> bool:
    """Whether features on `device` could be moved to the host; a model without weights may be meant for one."""
    return device.type == "meta" or device.type not in SHARED_MEMORY
