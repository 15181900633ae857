"""State and record of one sampling run, as the session keeps them.

Knows forecasters by their base class only; decides nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relcache.expansion import Ladder
from relcache.forecasters.base import FALLBACKS, Forecaster
from relcache.tracker import Seen, is_untouched

Shape = tuple[torch.Size, torch.dtype, torch.device]


@dataclass
class Cell:
    """State of one module in one branch: what the forecaster keeps, from how many full steps, and the last of them."""

    state: Any = None
    full_steps: int = 0
    shape: Shape | None = None
    step: int = -1
    output: Seen | None = None

    @property
    def is_intact(self) -> bool:
        """Whether nobody has changed the last output in place; then the cache would no longer hold what it cached."""
        return self.output is None or is_untouched(self.output, self.output.value)


@dataclass
class Branch:
    """State of one guidance branch: a cell per module, and the ladder of the first module's input."""

    cells: list[Cell]
    signal: Ladder | None = None


@dataclass
class Work:
    """Calls of one input shape: how many, an example of the arguments on the meta device, and the skipped modules."""

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

    def held_bytes(self, forecaster: Forecaster) -> int:
        """Bytes that the cache holds now; memory that several tensors share counts once."""
        storages: dict[int, int] = {}
        for branch in self.branches.values():
            tensors = [tensor for cell in branch.cells if cell.full_steps for tensor in forecaster.tensors(cell.state)]
            for tensor in [*tensors, *(branch.signal.terms if branch.signal else ())]:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def fallback_counts(self) -> dict[str, int]:
        """How often each fall-back was taken; reads the codes that forecasts have left on the device."""
        counts = Counter(self.fallbacks)
        if self.fallback_codes:
            codes = torch.cat([code.flatten().to("cpu", torch.int64) for code in self.fallback_codes])
            counts += Counter({reason: int((codes == code).sum()) for code, reason in FALLBACKS.items()})
        return dict(counts)
