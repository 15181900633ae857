"""State and record of one sampling run, as the session keeps them.

Knows what fall-backs forecasters have; decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache.forecasters.base import FALLBACKS
from relcache.storage import tensors

Shape = tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...]


def shape_of(inputs: list[Tensor | None]) -> Shape:
    """What must stay the same for a forecast to fit: shape, dtype and device of each stream's input."""
    return tuple(None if input is None else (input.shape, input.dtype, input.device) for input in inputs)


@dataclass
class Stream:
    """One output of a unit: the place of its input among the unit's, and the forecaster's state."""

    source: int
    state: Any = None


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
    """The terms of the first module's input, by which a schedule's error is measured, and their full steps."""

    steps: tuple[int, ...]
    stack: Any


@dataclass
class Branch:
    """State of one guidance branch: a cell per unit, the first module's input, the model last called, and the work of
    that call, which is the same for inputs of the same shapes."""

    cells: list[Cell]
    signal: Signal | None = None
    host: int | None = None
    work: Work | None = None

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that the branch keeps alive."""
        for cell in self.cells:
            for stream in cell.streams:
                yield from tensors(stream.state)
        yield from tensors(self.signal)


@dataclass
class Work:
    """Calls of one model with inputs of one shape: how many, an example of the arguments on the meta device, and how
    often each unit was skipped."""

    host: int
    example: tuple[tuple[Any, ...], dict[str, Any]]
    calls: int = 0
    skipped: Counter[int] = field(default_factory=Counter)


@dataclass
class Request:
    """State and record of one sampling run."""

    schedule_state: Any
    total_steps: int | None
    batch: int
    branches: dict[str, Branch] = field(default_factory=dict)
    full_steps: list[int] = field(default_factory=list)
    signal: list[float | None] = field(default_factory=list)
    fallbacks: Counter[str] = field(default_factory=Counter)
    fallback_codes: list[Tensor] = field(default_factory=list)
    work: dict[Any, Work] = field(default_factory=dict)
    cache_bytes: int = 0

    @property
    def step(self) -> int:
        return len(self.signal) - 1

    def held_bytes(self) -> int:
        """Bytes that the cache holds now; memory that several tensors share counts once."""
        storages: dict[int, int] = {}
        for branch in self.branches.values():
            for tensor in branch.tensors():
                storage = tensor.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        return sum(storages.values())

    def fallback_counts(self) -> dict[str, int]:
        """How often each fall-back was taken; reads the codes that forecasts have left on the device."""
        counts = Counter(self.fallbacks)
        if self.fallback_codes:
            codes = torch.cat([code.flatten().to("cpu", torch.int64) for code in self.fallback_codes])
            counts += Counter({reason: int((codes == code).sum()) for code, reason in FALLBACKS.items()})
        return dict(counts)
