"""Finds the guidance branch of a call: by its context, its conditioning, and all else where these are alike.

Calls are never counted to find a branch: parity breaks with guidance intervals, interrupts and two-stage schedulers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from relcache.storage.identity import NEAR, Snapshot, are_equal, distance, is_equal, is_untouched, snapshot

MOST_BRANCHES = 8


class Loop(NamedTuple):
    """The sampling loop, as its scheduler shows it.

    Attributes:
        timesteps: the tensor of timesteps, which is replaced whenever a request begins.
        step_index: the scheduler's own count of its steps, -1 before the first, None where it does not count.
        repeats: whether a timestep occurs twice, as with schedulers of the second order.
    """

    timesteps: Any
    step_index: int | None = None
    repeats: bool = False


class Signs(NamedTuple):
    """The values by which a call is compared with others.

    Attributes:
        timestep: tensor of any shape, or a number.
        sample: the tensors of the noisy sample.
        rows: size of the batch.
        conditioning: the arguments in which guidance branches differ.
        others: tensors and numbers of all other arguments.
        form: which arguments are passed, and those that are neither tensor nor number.
        context: the branch's name, where the caller sets one.
        loop: the caller's loop, where a scheduler is known.
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
        sample, others: of its last call; `others` by weak references.
        served: whether it has had its call of the present step.
        trusted: whether its cache may be used: not once an indistinguishable second call came within a step.
    """

    name: str
    kind: tuple[str | None, Hashable]
    conditioning: list[Snapshot]
    sample: list[Snapshot] = field(default_factory=list)
    others: list[Snapshot] = field(default_factory=list)
    served: bool = False
    trusted: bool = True

    def serve(self, signs: Signs) -> None:
        """Take this call as the branch's call of the present step."""
        self.served = True
        self.sample = [snapshot(value) for value in signs.sample]
        self.others = [snapshot(value).weakened() for value in signs.others]


class Branches:
    """The branches of one request."""

    def __init__(self) -> None:
        self._known: list[KnownBranch] = []

    def open_step(self) -> None:
        """Begin a step, in which no branch has had its call yet."""
        for known in self._known:
            known.served = False

    def has_context(self, context: str) -> bool:
        """Whether a branch was called under this name."""
        return any(known.kind[0] == context for known in self._known)

    def alike(self, signs: Signs) -> list[KnownBranch]:
        """Return the branches with the context, form and conditioning of a call."""
        kind = (signs.context, signs.form)
        near = [one for one in self._known if one.kind == kind and len(one.conditioning) == len(signs.conditioning)]
        for match in (is_untouched, is_equal):
            found = [one for one in near if all(map(match, one.conditioning, signs.conditioning))]
            if found:
                for one in found:
                    one.conditioning = [snapshot(value) for value in signs.conditioning]
                return found
        return []

    def choose(self, signs: Signs, alike: Sequence[KnownBranch]) -> tuple[KnownBranch | None, bool]:
        """Return the branch of a call among those alike, None where nothing decides; and whether it is far from all.

        The one with equal other arguments is chosen. Else it is the one with the nearest sample, if that is far nearer
        than any other's.
        """
        if len(alike) < 2:
            return (alike[0], False) if alike else (None, True)
        equal = [one for one in alike if are_equal(one.others, signs.others)]
        if len(equal) == 1:
            return equal[0], False
        ranked = sorted((distance(one.sample, signs.sample), index) for index, one in enumerate(equal or alike))
        (nearest, index), (second, _) = ranked[:2]
        is_clear = nearest < NEAR and 2 * nearest < second
        return (equal or alike)[index] if is_clear else None, nearest > NEAR

    def add(self, signs: Signs) -> KnownBranch:
        """Add a branch for a call: named by its context, else by a number."""
        taken, context = {known.name for known in self._known}, signs.context
        names = [str(number) for number in range(len(taken) + 1)]
        if context is not None:
            names = [context, *(f"{context} {number}" for number in range(2, len(taken) + 2))]
        name = next(name for name in names if name not in taken)
        known = KnownBranch(name, (context, signs.form), [snapshot(value) for value in signs.conditioning])
        self._known.append(known)
        return known

    def drop_oldest(self) -> str | None:
        """Drop a branch where there are more than `MOST_BRANCHES`; return its name, else None."""
        return self._known.pop(0).name if len(self._known) > MOST_BRANCHES else None

    def release(self) -> None:
        """Keep only weak references to the tensors of calls."""
        for known in self._known:
            known.conditioning = [one.weakened() for one in known.conditioning]
            known.sample = [one.weakened() for one in known.sample]
