"""State and record of one request: its steps, guidance branches, units and the call in progress. Decides nothing."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from relcache.correctors.base import Gap
from relcache.forecasters.base import FALLBACKS
from relcache.schedules.base import Setting
from relcache.storage.store import tensors, tensors_on_device

Shape = tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...]


def shape_of(inputs: list[Tensor | None]) -> Shape:
    """Return the shape, dtype and device of each stream's input; a forecast fits only where they are the same."""
    return tuple(None if input is None else (input.shape, input.dtype, input.device) for input in inputs)


@dataclass
class Stream:
    """One output of a unit.

    Attributes:
        source: index of its input among the unit's.
        state: the forecaster's, as the store keeps it.
        valid: a mask (batch, tokens) of the tokens that count; None if all do.
    """

    source: int
    state: Any = None
    valid: Tensor | None = None


@dataclass
class Cell:
    """State of one unit in one branch.

    Attributes:
        shape: of the inputs that filled the cell.
        steps: its last full steps, newest first, as many as a forecast needs.
        streams: one for each output that is a tensor.
        form: None if the unit returns one tensor; else the index of the stream for each entry of the returned tuple.
        empties: the outputs of a parallel unit's entries on a cached step: features without tokens. Of a run of
            blocks, the forms of their outputs.
    """

    shape: Shape | None = None
    steps: tuple[int, ...] = ()
    streams: list[Stream] = field(default_factory=list)
    form: list[int | None] | None = None
    empties: dict[int, Any] = field(default_factory=dict)


class Signal(NamedTuple):
    """The terms of the first module's input, their full steps, and its valid tokens; the error is measured on it."""

    steps: tuple[int, ...]
    stack: Any
    valid: Tensor | None = None


@dataclass
class Branch:
    """State of one guidance branch: a cell per unit, the error signal, and its last call's model, work and step."""

    cells: list[Cell]
    signal: Signal | None = None
    host: int | None = None
    work: Work | None = None
    step: int = -1

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the branch keeps alive, on any device."""
        return tensors(list(self.states()))

    def states(self) -> Iterator[Any]:
        """Yield each state of the branch, as the store keeps it."""
        for cell in self.cells:
            for stream in cell.streams:
                yield stream.state
        if self.signal is not None:
            yield self.signal.stack


@dataclass
class Visit:
    """One computation of a unit in one call. Its stand-ins and the cache share it.

    Attributes:
        index: of the unit in the session.
        active, rows: whether the call is cached, and its samples. Only compiled code reads them.
        skip, far: whether the unit is skipped, and whether its forecast may stray.
        streams, coefficients: read by the forecast. Coefficients are numbers, or in compiled code a tensor (order,).
        form, empties: as `Cell` has them.
        inputs: batch first, of a unit that is computed.
        output: the forecast until the last module is called; in compiled code also what the unit computed.
        codes: of the forecasts' fall-backs, each (batch,) or (1,).
        anchor: a tensor among the arguments that requires a gradient.
        opened, closed, twice: whether the first module was called, the last one, and the first one again.
    """

    index: int
    active: bool = False
    rows: int = 1
    skip: bool = False
    far: bool = False
    streams: Sequence[Stream] = ()
    coefficients: Sequence[float] | Tensor = ()
    form: list[int | None] | None = None
    empties: dict[int, Any] = field(default_factory=dict)
    inputs: list[Tensor | None] | None = None
    output: Any = None
    codes: list[Tensor] = field(default_factory=list)
    anchor: Tensor | None = None
    opened: bool = False
    closed: bool = False
    twice: bool = False

    @property
    def lent(self) -> list[Tensor]:
        """The inputs and the output of a computed unit, which compiled code leaves until the call ends."""
        return [leaf for leaf in tree_leaves((self.inputs, self.output)) if isinstance(leaf, Tensor)]

    def clear(self) -> None:
        """Keep nothing of the call; compiled code has guards on this very object."""
        vars(self).update(vars(Visit(self.index)))


@dataclass
class CallState:
    """The call in progress. The next call gets a new one.

    Attributes:
        branch, work, rows: the guidance branch, the record of such calls, and the number of samples.
        valid_tokens: as of `ModelSpec`: from a stream's name and number of tokens to the mask of those that count.
        visits: the open visits, by the index of their first unit.
        turns: how often each unit was opened.
        codes: of the forecasts' fall-backs.
        visited, updated: whether a unit was reached, and whether a cell was changed.
        paused: whether a gauge runs the model up to its first module; units then compute.
    """

    branch: Branch
    work: Work
    rows: int
    valid_tokens: Callable[[str, int], Tensor | None] | None = None
    visits: dict[int, Visit] = field(default_factory=dict)
    turns: Counter[int] = field(default_factory=Counter)
    codes: list[Tensor] = field(default_factory=list)
    visited: bool = False
    updated: bool = False
    paused: bool = False


@dataclass
class Work:
    """Calls of one model with inputs of one shape.

    Attributes:
        host: index of the model.
        example: the arguments of a call, on the meta device.
        modules: names of each unit's modules.
        calls, skipped: how many calls, and in how many of them each unit was skipped.
    """

    host: int
    example: tuple[tuple[Any, ...], dict[str, Any]]
    modules: Mapping[int, list[str]] = field(default_factory=dict)
    calls: int = 0
    skipped: Counter[int] = field(default_factory=Counter)


@dataclass
class Request:
    """State and record of one sampling run. `full` to `calls` are of the present step."""

    schedule_state: Any
    total_steps: int | None
    batch: int
    setting: Setting = field(default_factory=Setting)  # as it was known at the beginning
    branches: dict[str, Branch] = field(default_factory=dict)
    full_steps: list[int] = field(default_factory=list)
    signal: list[float | None] = field(default_factory=list)
    fallbacks: Counter[str] = field(default_factory=Counter)
    fallback_codes: dict[torch.device, Tensor] = field(default_factory=dict)
    outputs: list[tuple[int, bool, Tensor]] = field(default_factory=list)  # step, full, whether an output is finite
    work: dict[Any, Work] = field(default_factory=dict)
    cache_bytes: int = 0
    device_bytes: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    full: bool | None = None  # None until the first unit asks
    coefficients: dict[tuple[int, ...], tuple[list[float], bool]] = field(default_factory=dict)  # by full steps
    is_exact: bool = True  # whether all calls so far were computed in full
    calls: set[Hashable] = field(default_factory=set)  # model, branch and rows of each
    gaps: weakref.WeakKeyDictionary[Any, Gap] = field(default_factory=weakref.WeakKeyDictionary)  # by scheduler
    updates: int = 0  # of schedulers
    uncorrected: bool = False  # whether gaps cannot be corrected
    corrections: list[tuple[int, Tensor]] = field(default_factory=list)  # step, size relative to the sample
    step_began: list[float] = field(default_factory=list)  # seconds, while steps are timed
    kept: list[float] = field(default_factory=list)  # shares of corrected samples that the pipeline had replaced

    def open_step(self, full: bool | None = None) -> None:
        """Begin the next step; `full` decides it beforehand."""
        self.signal.append(None)
        self.full = full
        self.coefficients.clear()
        self.is_exact, self.calls = True, set()

    @property
    def step(self) -> int:
        """Number of the present step, from 0."""
        return len(self.signal) - 1

    @property
    def has_gaps(self) -> bool:
        """Whether a full step came after cached ones."""
        return any(later - earlier > 1 for earlier, later in pairwise(self.full_steps))

    @property
    def ended(self) -> list[Branch]:
        """In the last step, the branches that have ended; none where the number of steps is unknown."""
        if self.total_steps is None or self.step + 1 < self.total_steps:
            return []
        return [branch for branch in self.branches.values() if branch.step != self.step - 1]

    @property
    def has_ended(self) -> bool:
        """Whether all branches have ended."""
        return 0 < len(self.branches) == len(self.ended)

    @property
    def holds_features(self) -> bool:
        """Whether the request has cached features."""
        return any(cell.streams for branch in self.branches.values() for cell in branch.cells)

    def watch(self, output: Any) -> None:
        """Record whether the output of a call is finite. The device is not waited for."""
        full = self.full is not False
        values = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.outputs += [(self.step, full, value.detach().isfinite().all()) for value in values]

    def first_not_finite(self) -> tuple[int, bool] | None:
        """Return the first step with an output that is not finite, and whether it was full; None if there is none.

        Steps are checked once. Waits for the device.
        """
        watched = list(self.outputs)
        if not watched:
            return None
        del self.outputs[: len(watched)]
        finite = torch.stack([known.to("cpu") for *_, known in watched]).tolist()
        return next(
            ((step, full) for (step, full, _), is_finite in zip(watched, finite, strict=True) if not is_finite), None
        )

    def correction_sizes(self) -> list[tuple[int, float]]:
        """Return the full steps before which gaps were corrected, and the mean size over schedulers."""
        sizes: dict[int, list[float]] = {}
        for step, size in self.corrections:
            sizes.setdefault(step, []).append(float(size))
        return [(step, mean(each)) for step, each in sizes.items()]

    def held_bytes(self) -> tuple[int, int]:
        """Return the bytes that the cache holds now, in all and on the device. Shared memory counts once."""
        leaves = tree_leaves([list(branch.states()) for branch in self.branches.values()])
        return bytes_of(tensors(leaves)), bytes_of(tensors_on_device(leaves))

    def count_fallbacks(self, codes: list[Tensor]) -> None:
        """Count the codes of `FALLBACKS` of a call, each (batch,) or (1,). The counts stay on the device."""
        for device in {code.device for code in codes}:
            together = torch.cat([code.flatten() for code in codes if code.device == device])
            counts = (together == torch.arange(1, len(FALLBACKS) + 1, device=device)[:, None]).sum(1)
            known = self.fallback_codes.get(device)
            self.fallback_codes[device] = counts if known is None else known + counts

    def fallback_counts(self) -> dict[str, int]:
        """Return how often each fall-back was taken. Reads one tensor from each device."""
        counts = Counter(self.fallbacks)
        for numbers in self.fallback_codes.values():
            counts += Counter(dict(zip(FALLBACKS.values(), numbers.tolist(), strict=True)))
        return dict(counts)


def bytes_of(values: list[Tensor]) -> int:
    """Return the bytes that `values` keep alive. Shared memory counts once."""
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in values}
    return sum(storages.values())
