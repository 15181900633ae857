"""State and record of one request: its steps, guidance branches and units, and the call in progress."""

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

from relcache.correctors.base import Corrector, Gap
from relcache.engine.clock import Clock
from relcache.engine.ranks import ALONE, Ranks
from relcache.forecasters.base import FALLBACKS, Forecaster
from relcache.forecasters.expansion import Expansion
from relcache.schedules.base import Schedule, Setting
from relcache.storage.store import tensors, tensors_on_device

Shape = tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...]


def shape_of(inputs: list[Tensor | None]) -> Shape:
    """Return the shape, dtype and device of each stream's input; a forecast is valid only for the same ones."""
    return tuple(None if input is None else (input.shape, input.dtype, input.device) for input in inputs)


@dataclass
class Stream:
    """One output of a unit.

    Attributes:
        source: index of its input among the unit's inputs.
        state: the forecaster's state, in the store's form.
        valid: the mask (batch, tokens) of valid tokens; None if all are valid.
    """

    source: int
    state: Any = None
    valid: Tensor | None = None


@dataclass
class Cell:
    """State of one unit in one branch.

    Attributes:
        shape: of the inputs at its full steps.
        steps: its last full steps, newest first, as many as a forecast needs.
        streams: one for each output that is a tensor.
        form: None if the unit returns one tensor; else the index of the stream for each entry of the returned tuple.
        mesh: of an output that tensor parallelism distributes; else None.
        empties: outputs of a parallel unit's entries on a cached step: features without tokens. For a run of blocks,
            the forms of their outputs.
    """

    shape: Shape | None = None
    steps: tuple[int, ...] = ()
    streams: list[Stream] = field(default_factory=list)
    form: list[int | None] | None = None
    mesh: Any = None
    empties: dict[int, Any] = field(default_factory=dict)


class Signal(NamedTuple):
    """The error signal: the terms of the first module's input, their full steps, and the mask of valid tokens."""

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
        """Yield each state of the branch, in the store's form."""
        for cell in self.cells:
            for stream in cell.streams:
                yield stream.state
        if self.signal is not None:
            yield self.signal.stack


@dataclass
class Visit:
    """One computation of a unit in one call, shared by the cache and the replacements of the unit's forwards.

    Attributes:
        index: of the unit in the session.
        forecaster: of the request. None before the first call.
        active, rows: whether the call is cached, and its number of samples. Only compiled code reads them.
        skip, far: whether the unit is skipped, and whether its forecast may stray.
        streams, coefficients: for the forecast. Coefficients are numbers, or in compiled code a tensor (order,).
        form, mesh, empties: as in `Cell`.
        inputs: of a computed unit, batch first.
        output: the forecast until the last module is called; in compiled code also the computed output.
        codes: the fall-backs of the forecasts, each (batch,) or (1,).
        anchor: a tensor among the arguments that requires a gradient.
        opened, closed, twice: whether the first module was called, the last module, and the first module again.
    """

    index: int
    forecaster: Forecaster | None = None
    active: bool = False
    rows: int = 1
    skip: bool = False
    far: bool = False
    streams: Sequence[Stream] = ()
    coefficients: Sequence[float] | Tensor = ()
    form: list[int | None] | None = None
    mesh: Any = None
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
        """The inputs and outputs of a computed unit, which compiled code leaves until the call ends."""
        return [leaf for leaf in tree_leaves((self.inputs, self.output)) if isinstance(leaf, Tensor)]

    def clear(self) -> None:
        """Reset the visit in place, as compiled code has guards on this object."""
        vars(self).update(vars(Visit(self.index)))


@dataclass
class CallState:
    """The call in progress. The next call gets a new one.

    Attributes:
        branch, work, rows: the guidance branch, the record of such calls, and the number of samples.
        valid_tokens: as in `ModelSpec`: returns the mask of valid tokens for a stream's name and number of tokens.
        visits: the open visits, by the index of their first unit.
        turns: how often each unit was opened.
        codes: the fall-backs of the forecasts.
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
    """The calls of one model with inputs of one shape.

    Attributes:
        host: index of the model.
        sizes: shape and type of each tensor among the arguments.
        example: the arguments of a call, on the meta device.
        modules: names of each unit's modules.
        calls, skipped: the number of calls, and the number in which each unit was skipped.
    """

    host: int
    sizes: Hashable
    example: tuple[tuple[Any, ...], dict[str, Any]]
    modules: Mapping[int, list[str]] = field(default_factory=dict)
    calls: int = 0
    skipped: Counter[int] = field(default_factory=Counter)


class Rules(NamedTuple):
    """The parts of a request's method: they forecast skipped units, decide on steps and correct gaps."""

    forecaster: Forecaster
    schedule: Schedule
    corrector: Corrector | None = None
    name: str = ""

    @property
    def predictor(self) -> Expansion:
        """The expansion that predicts the first module's input."""
        return self.schedule.predictor(self.forecaster.expansion)

    @property
    def most_steps(self) -> int:
        """The number of full steps that a unit remembers."""
        return max(self.forecaster.full_steps_needed, self.forecaster.expansion.order + 1)


@dataclass
class Request:
    """State and record of one sampling run. The fields from `full` to `calls` belong to the present step."""

    rules: Rules
    schedule_state: Any
    total_steps: int | None
    batch: int
    setting: Setting = field(default_factory=Setting)  # as known at the beginning
    ranks: Ranks = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the samples
    has_cost: bool = False  # whether the cost of a cached step is known
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
    full: bool | None = None  # None until the first unit is opened
    coefficients: dict[tuple[int, ...], tuple[list[float], bool]] = field(default_factory=dict)  # by full steps
    is_exact: bool = True  # whether all calls so far were computed in full
    calls: set[Hashable] = field(default_factory=set)  # model, branch and rows
    gaps: weakref.WeakKeyDictionary[Any, Gap] = field(default_factory=weakref.WeakKeyDictionary)  # by scheduler
    updates: int = 0  # of schedulers
    uncorrected: bool = False  # whether gaps cannot be corrected
    corrections: list[tuple[int, Tensor]] = field(default_factory=list)  # step, size relative to the sample
    clock: Clock = field(default_factory=Clock)
    kept: list[float] = field(default_factory=list)  # unchanged fractions of the samples that the pipeline overwrote

    def open_step(self, full: bool | None = None) -> None:
        """Begin the next step; a bool `full` decides it in advance."""
        self.clock.begin_step(self.device)
        self.signal.append(None)
        self.full = full
        self.coefficients.clear()
        self.is_exact, self.calls = True, set()

    def numbers_for(self, steps: tuple[int, ...]) -> tuple[list[float], bool]:
        """Return the coefficients of a forecast at the present step after full `steps`, and whether it may stray.

        They are computed once for all units with the same history.
        """
        if steps not in self.coefficients:
            numbers = self.rules.forecaster.coefficients(steps, self.step)
            self.coefficients[steps] = numbers, self.rules.forecaster.may_stray(steps, numbers)
        return self.coefficients[steps]

    @property
    def step(self) -> int:
        """Number of the present step, from 0."""
        return len(self.signal) - 1

    @property
    def has_gaps(self) -> bool:
        """Whether a full step followed a cached one."""
        return any(later - earlier > 1 for earlier, later in pairwise(self.full_steps))

    @property
    def ended(self) -> list[Branch]:
        """In the last step, the branches that have ended; empty if the number of steps is unknown."""
        if self.total_steps is None or self.step + 1 < self.total_steps:
            return []
        return [branch for branch in self.branches.values() if branch.step != self.step - 1]

    @property
    def has_ended(self) -> bool:
        """Whether all branches have ended."""
        return 0 < len(self.branches) == len(self.ended)

    @property
    def has_features(self) -> bool:
        """Whether the request has cached features."""
        return any(cell.streams for branch in self.branches.values() for cell in branch.cells)

    def watch(self, output: Any) -> None:
        """Record when a call ended, and whether its output is finite, without waiting for the device."""
        self.clock.end_call(self.device)
        full = self.full is not False
        values = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.outputs += [(self.step, full, value.detach().isfinite().all()) for value in values]

    def first_not_finite(self) -> tuple[int, bool] | None:
        """Return the first step with an output that is not finite, and whether it was full; None if there is none.

        Each output is checked once. Waits for the device.
        """
        recorded = list(self.outputs)
        if not recorded:
            return None
        del self.outputs[: len(recorded)]
        finite = torch.stack([is_finite.to("cpu") for *_, is_finite in recorded]).tolist()
        return next(
            ((step, full) for (step, full, _), is_finite in zip(recorded, finite, strict=True) if not is_finite), None
        )

    def correction_sizes(self) -> list[tuple[int, float]]:
        """Return the full steps that ended corrected gaps, each with the mean correction over schedulers."""
        sizes: dict[int, list[float]] = {}
        for step, size in self.corrections:
            sizes.setdefault(step, []).append(float(size))
        return [(step, mean(of_step)) for step, of_step in sizes.items()]

    def cached_bytes(self) -> tuple[int, int]:
        """Return the bytes in the cache now, in all and on the device. Shared memory counts once."""
        leaves = tree_leaves([list(branch.states()) for branch in self.branches.values()])
        return bytes_of(tensors(leaves)), bytes_of(tensors_on_device(leaves))

    def count_fallbacks(self, codes: list[Tensor]) -> None:
        """Count a call's codes of `FALLBACKS`, each (batch,) or (1,). The counts stay on the device."""
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
