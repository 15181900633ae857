"""State and record of one sampling run, as the session keeps them.

Knows what fall-backs forecasters have; decides nothing.
"""

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
    """What must stay the same for a forecast to fit: shape, dtype and device of each stream's input."""
    return tuple(None if input is None else (input.shape, input.dtype, input.device) for input in inputs)


@dataclass
class Stream:
    """One output of a unit: the place of its input among the unit's, the forecaster's state, and which of its tokens
    count, (batch, tokens); None if all do."""

    source: int
    state: Any = None
    valid: Tensor | None = None


@dataclass
class Cell:
    """State of one unit in one branch.

    Attributes:
        shape: of the inputs that the cell was filled from.
        steps: the full steps that it has seen, newest first; of older ones only as many as a forecast needs.
        streams: one for each output that is a tensor.
        form: how the outputs are returned: None for one tensor by itself, else for each entry of the tuple the place
            of its stream, or None for an entry that is None.
        empties: of a parallel unit, what each entry returns on a cached step: its features with no tokens.
    """

    shape: Shape | None = None
    steps: tuple[int, ...] = ()
    streams: list[Stream] = field(default_factory=list)
    form: list[int | None] | None = None
    empties: dict[int, Any] = field(default_factory=dict)


class Signal(NamedTuple):
    """The terms of the first module's input, by which a schedule's error is measured, their full steps, and which of
    the tokens count, as of a `Stream`."""

    steps: tuple[int, ...]
    stack: Any
    valid: Tensor | None = None


@dataclass
class Branch:
    """State of one guidance branch: a cell per unit, the first module's input, the model last called, the work of that
    call, which is the same for inputs of the same shapes, and the step in which it was."""

    cells: list[Cell]
    signal: Signal | None = None
    host: int | None = None
    work: Work | None = None
    step: int = -1

    def tensors(self) -> list[Tensor]:
        """The tensors that the branch keeps alive, wherever they lie."""
        return tensors(list(self.states()))

    def states(self) -> Iterator[Any]:
        """Everything that the branch keeps, as the store keeps it."""
        for cell in self.cells:
            for stream in cell.streams:
                yield stream.state
        if self.signal is not None:
            yield self.signal.stack


class Stored(NamedTuple):
    """What a forecast of one stream reads: the state as the store keeps it, the index of its input, and its tokens."""

    state: Any
    source: int
    valid: Tensor | None


@dataclass
class Visit:
    """One computation of a unit in one call: what passes between its stand-ins and the cache.

    Attributes:
        index: of the unit in the session.
        active, rows: whether the call is cached, and its samples. Only compiled code reads them.
        skip, far: whether the unit is skipped, and whether its forecast may stray.
        stored, coefficients: of the forecast: one entry per stream, and numbers or a tensor (order,).
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
    stored: tuple[Stored, ...] = ()
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
    """The call in progress. It is replaced whole when the next one begins.

    Attributes:
        branch, work, rows: its guidance branch, the record of such calls, and its samples.
        valid_tokens: of a stream, from its name and number of tokens, the tokens that count; as of `ModelSpec`.
        visits: by the index of their first unit, those whose last module was not called yet.
        turns: how often the modules of a unit were called.
        codes: of the forecasts' fall-backs.
        visited, updated: whether a unit was reached, and whether a cell was changed.
        paused: whether a gauge runs the model up to its first module, and units do as if nothing was cached.
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
    """Calls of one model with inputs of one shape: how many, an example of the arguments on the meta device, the names
    of each unit's modules, and how often it was skipped."""

    host: int
    example: tuple[tuple[Any, ...], dict[str, Any]]
    modules: Mapping[int, list[str]] = field(default_factory=dict)
    calls: int = 0
    skipped: Counter[int] = field(default_factory=Counter)


@dataclass
class Request:
    """State and record of one sampling run."""

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
    full: bool | None = None  # decision of the present step; None until its first unit asks
    coefficients: dict[tuple[int, ...], tuple[list[float], bool]] = field(
        default_factory=dict
    )  # of the step, by full steps before it

    is_exact: bool = True  # whether the calls of the present step so far were computed in full
    calls: set[Hashable] = field(default_factory=set)  # of the present step: the model, branch and rows of each
    gaps: weakref.WeakKeyDictionary[Any, Gap] = field(default_factory=weakref.WeakKeyDictionary)  # by scheduler
    updates: int = 0  # of schedulers that were seen
    uncorrected: bool = False  # gaps cannot be corrected
    corrections: list[tuple[int, Tensor]] = field(default_factory=list)  # step, and size relative to the sample
    step_began: list[float] = field(default_factory=list)  # seconds, while steps are timed
    kept: list[float] = field(default_factory=list)  # shares of corrected samples that were left as they were

    def open_step(self, full: bool | None = None) -> None:
        """The next step begins; `full` decides it beforehand."""
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
        """Whether a full step has come after cached ones."""
        return any(later - earlier > 1 for earlier, later in pairwise(self.full_steps))

    @property
    def ended(self) -> list[Branch]:
        """In the last step, the branches that have made their call of it, and those that had ended before; where the
        number of steps is not known, none."""
        if self.total_steps is None or self.step + 1 < self.total_steps:
            return []
        return [branch for branch in self.branches.values() if branch.step != self.step - 1]

    @property
    def has_ended(self) -> bool:
        """Whether all branches have; not known where the number of steps is not."""
        return 0 < len(self.branches) == len(self.ended)

    @property
    def holds_features(self) -> bool:
        """Whether anything is cached for it."""
        return any(cell.streams for branch in self.branches.values() for cell in branch.cells)

    def watch(self, output: Any) -> None:
        """Remember on the device whether the output of a call in the present step is finite."""
        full = self.full is not False
        values = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.outputs += [(self.step, full, value.detach().isfinite().all()) for value in values]

    def first_not_finite(self) -> tuple[int, bool] | None:
        """The first step, of those since this was last asked, in which an output was not finite, and whether it was
        full; None if all were finite. Waits for the device."""
        watched = list(self.outputs)
        if not watched:
            return None
        del self.outputs[: len(watched)]
        finite = torch.stack([known.to("cpu") for *_, known in watched]).tolist()
        return next(
            ((step, full) for (step, full, _), is_finite in zip(watched, finite, strict=True) if not is_finite), None
        )

    def correction_sizes(self) -> list[tuple[int, float]]:
        """The full steps before which gaps were corrected, and the sizes: means where several schedulers' were."""
        sizes: dict[int, list[float]] = {}
        for step, size in self.corrections:
            sizes.setdefault(step, []).append(float(size))
        return [(step, mean(each)) for step, each in sizes.items()]

    def held_bytes(self) -> tuple[int, int]:
        """Bytes that the cache holds now, and those of them on the device; memory that several tensors share counts
        once."""
        leaves = tree_leaves([list(branch.states()) for branch in self.branches.values()])
        return bytes_of(tensors(leaves)), bytes_of(tensors_on_device(leaves))

    def count_fallbacks(self, codes: list[Tensor]) -> None:
        """Add to the counts, which stay on the device until they are asked for, what the forecasts of a call have
        fallen back to: codes of `FALLBACKS`."""
        for device in {code.device for code in codes}:
            together = torch.cat([code.flatten() for code in codes if code.device == device])
            counts = (together == torch.arange(1, len(FALLBACKS) + 1, device=device)[:, None]).sum(1)
            known = self.fallback_codes.get(device)
            self.fallback_codes[device] = counts if known is None else known + counts

    def fallback_counts(self) -> dict[str, int]:
        """How often each fall-back was taken; reads one tensor from each device."""
        counts = Counter(self.fallbacks)
        for numbers in self.fallback_codes.values():
            counts += Counter(dict(zip(FALLBACKS.values(), numbers.tolist(), strict=True)))
        return dict(counts)


def bytes_of(values: list[Tensor]) -> int:
    """Bytes that `values` keep alive; memory that several share counts once."""
    storages = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in values}
    return sum(storages.values())
