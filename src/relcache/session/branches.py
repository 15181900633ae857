"""Find the guidance branch of a call by its context and conditioning, and if these are alike, by all other arguments.

A branch is never found by counting calls: parity breaks with guidance intervals, interrupts and two-stage schedulers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from relcache.storage.identity import NEAR, Snapshot, are_equal, distance, is_equal, is_untouched, snapshot

MOST_BRANCHES = 8


class Loop(NamedTuple):
    """The state of a sampling loop, read from its scheduler.

    Attributes:
        timesteps: the tensor of timesteps, a new one for each request.
        step_index: the scheduler's own count of its steps: -1 before the first; None if it does not count.
        repeats: whether a timestep occurs twice, as in second-order schedulers.
    """

    timesteps: Any
    step_index: int | None = None
    repeats: bool = False


class Signs(NamedTuple):
    """The values of a call that are compared with those of other calls.

    Attributes:
        timestep: tensor of any shape, or a number.
        sample: the tensors of the noisy sample.
        rows: size of the batch.
        conditioning: the arguments that differ between guidance branches.
        others: tensors and numbers of all other arguments.
        form: the names of the arguments, and values that are neither tensors nor numbers.
        context: the branch's name; None if the caller sets none.
        loop: the caller's loop; None if no scheduler is known.
    """

    timestep: Any
    sample: Sequence[Tensor]
    rows: int
    conditioning: Sequence[Any]
    others: Sequence[Any]
    form: Hashable
    context: str | None
    loop: Loop | None = None


@dataclass
class KnownBranch:
    """A branch, with snapshots of its last call.

    Attributes:
        kind: its context and the form of its arguments.
        sample, others: those of its last call; `others` are weak references.
        served: whether it has had its call in the present step.
        trusted: whether its cache may be used; false after two indistinguishable calls within a step.
    """

    name: str
    kind: tuple[str | None, Hashable]
    conditioning: list[Snapshot]
    sample: list[Snapshot] = field(default_factory=list)
    others: list[Snapshot] = field(default_factory=list)
    served: bool = False
    trusted: bool = True

    def serve(self, signs: Signs) -> None:
        """Record this call as the branch's call in the present step."""
        self.served = True
        self.sample = [snapshot(value) for value in signs.sample]
        self.others = [snapshot(value).weakened() for value in signs.others]


class Branches:
    """The branches of one request."""

    def __init__(self) -> None:
        self._known: list[KnownBranch] = []

    def open_step(self) -> None:
        """Begin a step: no branch has had its call yet."""
        for known in self._known:
            known.served = False

    def has_context(self, context: str) -> bool:
        """Return whether a branch was called in this context."""
        return any(known.kind[0] == context for known in self._known)

    def alike(self, signs: Signs) -> list[KnownBranch]:
        """Return the branches with the same context, form and conditioning as a call."""
        kind = (signs.context, signs.form)
        count = len(signs.conditioning)
        same_kind = [known for known in self._known if known.kind == kind and len(known.conditioning) == count]
        for match in (is_untouched, is_equal):
            alike = [known for known in same_kind if all(map(match, known.conditioning, signs.conditioning))]
            if alike:
                for known in alike:
                    known.conditioning = [snapshot(value) for value in signs.conditioning]
                return alike
        return []

    def choose(self, signs: Signs, alike: Sequence[KnownBranch]) -> tuple[KnownBranch | None, bool]:
        """Return the branch of a call among those `alike`, None if ambiguous, and whether the call is far from all.

        Choose the branch with equal other arguments; else the branch with the nearest sample, if it is far nearer than
        any other.
        """
        if len(alike) < 2:
            return (alike[0], False) if alike else (None, True)
        equal = [known for known in alike if are_equal(known.others, signs.others)]
        if len(equal) == 1:
            return equal[0], False
        ranked = sorted((distance(known.sample, signs.sample), index) for index, known in enumerate(equal or alike))
        (nearest, index), (second, _) = ranked[:2]
        is_clear = nearest < NEAR and 2 * nearest < second
        return (equal or alike)[index] if is_clear else None, nearest > NEAR

    def add(self, signs: Signs) -> KnownBranch:
        """Add a branch for a call, named by its context or else by a number."""
        taken, context = {known.name for known in self._known}, signs.context
        names = [str(number) for number in range(len(taken) + 1)]
        if context is not None:
            names = [context, *(f"{context} {number}" for number in range(2, len(taken) + 2))]
        name = next(name for name in names if name not in taken)
        known = KnownBranch(name, (context, signs.form), [snapshot(value) for value in signs.conditioning])
        self._known.append(known)
        return known

    def drop_oldest(self) -> str | None:
        """Drop the oldest branch if there are more than `MOST_BRANCHES`; return its name, else None."""
        return self._known.pop(0).name if len(self._known) > MOST_BRANCHES else None

    def release(self) -> None:
        """Keep only weak references to the tensors of calls."""
        for known in self._known:
            known.conditioning = [past.weakened() for past in known.conditioning]
            known.sample = [past.weakened() for past in known.sample]
