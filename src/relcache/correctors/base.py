"""What every corrector is. Knows nothing of forecasters, schedules, models or sessions.

A corrector answers: how is a gap made good once its end is known? A gap is a run of cached steps between two full
ones. Its outputs were forecast, from one side; when the next full step is known, they can be interpolated, from both. A
corrector holds options, never history: what it needs of the past is a `Gap`, a value that is kept for each scheduler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache.correctors.sampler import Update
from relcache.storage.identity import Snapshot


class Known(NamedTuple):
    """A full step: its number, the output that the scheduler was given, and the calls that this was made of."""

    step: int
    output: Tensor
    calls: Hashable

    def fits(self, calls: Hashable, output: Tensor) -> bool:
        """Whether the outputs between it and a full step of these `calls` with this `output` can be interpolated."""
        return self.calls == calls and self.output.shape == output.shape


class Link(NamedTuple):
    """A cached step, and how the pipeline went on from it.

    Attributes:
        step: its number.
        others: arguments of its update beside output and sample.
        result: a copy of the sample that the update returned, until the next update shows what became of it.
        returned: the sample itself, not held.
        handed: the sample that the next update was given, None where it is `result` as it was.
        same: where the two are equal; elsewhere the pipeline has put in something of its own.
    """

    step: int
    others: dict[str, Any]
    result: Tensor | None = None
    returned: Snapshot | None = None
    handed: Tensor | None = None
    same: Tensor | None = None

    def joined(self, result: Tensor) -> Tensor:
        """The sample that the next update would have been given, had this one returned `result`."""
        if self.handed is None or self.same is None:
            return result
        return torch.where(self.same, result.to(self.handed.dtype), self.handed)


@dataclass(frozen=True)
class Gap:
    """What is known of one scheduler's steps since the last full ones.

    Attributes:
        known: the last full steps, newest first, all made of the same calls.
        before: the scheduler as it was before its first update of the gap; None where no gap is open.
        sample: the sample that this update was given.
        links: the cached steps, oldest first.
    """

    known: tuple[Known, ...] = ()
    before: Any = None
    sample: Tensor | None = None
    links: tuple[Link, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether there are cached steps since the last full one."""
        return bool(self.links)

    @property
    def last_step(self) -> int | None:
        """The last step that the scheduler has made; None before the first."""
        if self.links:
            return self.links[-1].step
        return self.known[0].step if self.known else None

    def kept(self) -> list[float] | None:
        """Shares of the samples that went unchanged from one update to the next, as far as pipelines touched them.

        None if they touched none. Waits for the device.
        """
        touched = [link.same.float().mean() for link in self.links if link.same is not None]
        return torch.stack(touched).tolist() if touched else None

    def with_link(self, link: Link) -> Gap:
        """One cached step more."""
        return replace(self, links=(*self.links, link))

    def with_handed(self, sample: Tensor, same: Tensor | None) -> Gap:
        """The next update was given `sample`, which is the last one's result where `same`; None if it is all of it."""
        *others, last = self.links
        own = sample.clone() if same is not None else None
        return replace(self, links=(*others, last._replace(result=None, returned=None, handed=own, same=same)))

    def closed(self, full: Known, most: int) -> Gap:
        """No gap is open; `full` is the newest of at most `most` full steps."""
        alike = [known for known in self.known if known.fits(full.calls, full.output)]
        return Gap((full, *alike)[:most])


class Corrected(NamedTuple):
    """Sample and output with which a scheduler goes on at a gap's end, and the state that it goes on from."""

    sample: Tensor
    output: Tensor
    scheduler: Any


class Corrector(ABC):
    """Makes a gap good when the full step at its end is known."""

    @property
    @abstractmethod
    def full_steps_needed(self) -> int:
        """How many full steps before the gap's end it reads."""

    @abstractmethod
    def correct(self, gap: Gap, step: int, update: Update, scheduler: Any) -> Corrected:
        """What the full step `step` goes on with, in which `scheduler` is asked for `update`.

        `gap.before` is not used again and may step on; `scheduler` is only read.
        """
