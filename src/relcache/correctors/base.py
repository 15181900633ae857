"""The base class of correctors. Knows nothing of forecasters, schedules, models or sessions.

A corrector recomputes a gap, the cached steps between two full ones. Its outputs were forecast from one side; once the
next full step is known, they can be interpolated from both. A corrector stores options, never history: the past is in
a `Gap`, one for each scheduler.
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
    """A full step: its number, the output that the scheduler got, (batch, …), and the calls that produced it."""

    step: int
    output: Tensor
    calls: Hashable

    def fits(self, calls: Hashable, output: Tensor) -> bool:
        """Whether outputs can be interpolated between this step and a full step with these `calls` and `output`."""
        return self.calls == calls and self.output.shape == output.shape


class Link(NamedTuple):
    """A cached step, and how the pipeline went on from it; all tensors have the sample's shape.

    Attributes:
        step: its number.
        others: arguments of its update beside output and sample.
        result: a copy of the sample that the update returned, until the next update.
        returned: a weak snapshot of that sample.
        handed: the sample that the next update got; None if it is `result` unchanged.
        same: bool mask of the entries in which the two are equal; the pipeline has overwritten the others.
    """

    step: int
    others: dict[str, Any]
    result: Tensor | None = None
    returned: Snapshot | None = None
    handed: Tensor | None = None
    same: Tensor | None = None

    def joined(self, result: Tensor) -> Tensor:
        """Return the sample that the next update would have got if this one had returned `result`."""
        if self.handed is None or self.same is None:
            return result
        return torch.where(self.same, result.to(self.handed.dtype), self.handed)


@dataclass(frozen=True)
class Gap:
    """One scheduler's last full steps, and its cached steps since then.

    Attributes:
        known: the last full steps, newest first, all of the same calls.
        before: a copy of the scheduler before its first update of the gap; None without an open gap.
        sample: the sample that this update got.
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
        """The scheduler's last step; None before the first."""
        if self.links:
            return self.links[-1].step
        return self.known[0].step if self.known else None

    def kept(self) -> list[float] | None:
        """Return the unchanged fraction of each sample that a pipeline overwrote between updates; None without one.

        Waits for the device.
        """
        touched = [link.same.float().mean() for link in self.links if link.same is not None]
        return torch.stack(touched).tolist() if touched else None

    def with_link(self, link: Link) -> Gap:
        """Return the gap with one more cached step."""
        return replace(self, links=(*self.links, link))

    def with_handed(self, sample: Tensor, same: Tensor | None) -> Gap:
        """Return the gap after the next update got `sample`: the last result where `same`, or all of it for None."""
        *others, last = self.links
        own = sample.clone() if same is not None else None
        return replace(self, links=(*others, last._replace(result=None, returned=None, handed=own, same=same)))

    def closed(self, full: Known, most: int) -> Gap:
        """Return a closed gap, with `full` as the newest of at most `most` full steps."""
        alike = [known for known in self.known if known.fits(full.calls, full.output)]
        return Gap((full, *alike)[:most])


class Corrected(NamedTuple):
    """The sample and output of a scheduler's update at a gap's end, and a scheduler with the state to go on from."""

    sample: Tensor
    output: Tensor
    scheduler: Any


class Corrector(ABC):
    """Corrects a gap once the full step at its end is known."""

    @property
    @abstractmethod
    def full_steps_needed(self) -> int:
        """How many full steps before the gap's end `correct` reads."""

    @abstractmethod
    def correct(self, gap: Gap, step: int, update: Update, scheduler: Any) -> Corrected:
        """Return the corrected `update` of `scheduler` at the full step `step`, with its shapes and dtypes.

        `gap.before` is not used again and may step on; `scheduler` is only read.
        """
