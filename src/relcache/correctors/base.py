"""The base class of correctors. Knows nothing of forecasters, schedules, models or sessions.

A corrector recomputes a gap, the cached steps between two full ones. The outputs in a gap are forecast from the steps
before it; once the next full step is known, they can be interpolated from both sides. A corrector stores options, never
history: a `Gap` for each scheduler stores that.
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
    """A full step: its number, the model output (batch, …) in its own dtype, and the calls that produced it."""

    step: int
    output: Tensor
    calls: Hashable

    def fits(self, calls: Hashable, output: Tensor) -> bool:
        """Return whether outputs can be interpolated between this step and one with these `calls` and `output`."""
        return self.calls == calls and self.output.shape == output.shape


class Link(NamedTuple):
    """A cached step, and the sample that the pipeline used next; all tensors have the sample's shape.

    Attributes:
        step: its number.
        others: arguments of its update besides output and sample.
        result: a copy of the sample that the update returned, until the next update.
        returned: a weak snapshot of the returned sample.
        next_sample: the sample that the next update got; None if it is the unchanged result.
        same: bool mask of the entries that are equal in both; the pipeline has overwritten the others.
    """

    step: int
    others: dict[str, Any]
    result: Tensor | None = None
    returned: Snapshot | None = None
    next_sample: Tensor | None = None
    same: Tensor | None = None

    def joined(self, result: Tensor) -> Tensor:
        """Return the sample (batch, …) of the next update, had this one returned `result`."""
        if self.next_sample is None or self.same is None:
            return result
        return torch.where(self.same, result.to(self.next_sample.dtype), self.next_sample)


@dataclass(frozen=True)
class Gap:
    """One scheduler's last full steps, and its cached steps since then.

    Attributes:
        known: the last full steps, newest first, all with the same calls.
        before: a copy of the scheduler before its first update in the gap; None without an open gap.
        sample: the sample of this update.
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
        """Return the unchanged fraction of each sample that the pipeline overwrote between updates; None without one.

        Waits for the device.
        """
        fractions = [link.same.float().mean() for link in self.links if link.same is not None]
        return torch.stack(fractions).tolist() if fractions else None

    def with_link(self, link: Link) -> Gap:
        """Return the gap with one more cached step."""
        return replace(self, links=(*self.links, link))

    def with_next_sample(self, sample: Tensor, same: Tensor | None) -> Gap:
        """Return the gap after the next update got `sample`; `same` as in `Link`, None if it is the last result."""
        *others, last = self.links
        own = sample.clone() if same is not None else None
        return replace(self, links=(*others, last._replace(result=None, returned=None, next_sample=own, same=same)))

    def closed(self, full: Known, most: int) -> Gap:
        """Return a closed gap, with `full` as the newest of at most `most` full steps."""
        alike = [known for known in self.known if known.fits(full.calls, full.output)]
        return Gap((full, *alike)[:most])


class Corrected(NamedTuple):
    """The sample and output of the update at a gap's end, and a scheduler with the state to continue from."""

    sample: Tensor
    output: Tensor
    scheduler: Any


class Corrector(ABC):
    """Corrects a gap once the full step at its end is known."""

    @property
    @abstractmethod
    def full_steps_needed(self) -> int:
        """The number of full steps before the gap's end that `correct` reads."""

    @abstractmethod
    def correct(self, gap: Gap, step: int, update: Update, scheduler: Any) -> Corrected:
        """Return the corrected `update` of `scheduler` at the full step `step`, with its shapes and dtypes.

        `gap.before` may be stepped, as it is not used again; `scheduler` is only read.
        """
