"""Which guidance branch a call is of: told by its context, its conditioning, and where these are alike by all else.

Calls are never counted to find a branch: parity breaks with guidance intervals, interrupts and two-stage schedulers.
Knows nothing of steps beyond whether a branch has had its call of the present one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from relcache.storage.identity import (
    NEAR,
    Snapshot,
    are_equal,
    distance,
    is_equal,
    is_untouched,
    snapshot,
    weak_snapshot,
    weakened,
)

MOST_BRANCHES = 8


class Signs(NamedTuple):
    """What a call shows of itself.

    Attributes:
        timestep: tensor of any shape, or a number.
        sample: the tensors of the noisy sample.
        conditioning: the arguments that tell guidance branches apart.
        others: tensors and numbers of all other arguments.
        form: what is fixed of the arguments: which are given, and what is neither tensor nor number.
        context: the branch's name, where the caller gives one.
    """

    timestep: Any
    sample: Sequence[Tensor]
    conditioning: Sequence[Any]
    others: Sequence[Any] = ()
    form: Hashable = None
    context: str | None = None


@dataclass
class Known:
    """A branch, as its calls have shown it.

    Attributes:
        conditioning: the arguments by which it is told; those that were seen last.
        sample, others: of its last call; the others are not held.
        served: whether it has had its call of the present step.
        trusted: whether what is cached for it may be used. It is not, once a second call of a step was not to be told
            from it.
    """

    name: str
    signs: tuple[str | None, Hashable]
    conditioning: list[Snapshot]
    sample: list[Snapshot] = field(default_factory=list)
    others: list[Snapshot] = field(default_factory=list)
    served: bool = False
    trusted: bool = True

    def serve(self, signs: Signs) -> None:
        """It has this call in the present step."""
        self.served = True
        self.sample, self.others = (
            [snapshot(value) for value in signs.sample],
            [weak_snapshot(value) for value in signs.others],
        )


class Branches:
    """The branches of one request."""

    def __init__(self) -> None:
        self._known: list[Known] = []

    def open_step(self) -> None:
        """No branch has had its call of the step that begins."""
        for known in self._known:
            known.served = False

    def has_context(self, context: str) -> bool:
        """Whether a branch was called under this name."""
        return any(known.signs[0] == context for known in self._known)

    def alike(self, signs: Signs) -> list[Known]:
        """The branches with the context, form and conditioning of a call."""
        kind = (signs.context, signs.form)
        near = [one for one in self._known if one.signs == kind and len(one.conditioning) == len(signs.conditioning)]
        for match in (is_untouched, is_equal):
            found = [one for one in near if all(map(match, one.conditioning, signs.conditioning))]
            if found:
                for one in found:
                    one.conditioning = [snapshot(value) for value in signs.conditioning]
                return found
        return []

    def choose(self, signs: Signs, alike: Sequence[Known]) -> tuple[Known | None, bool]:
        """Which of the branches that are alike a call is of, None where nothing tells; and whether it is far from all.

        Of several it is the one whose other arguments were these; else the one whose sample lies nearest, and far
        nearer than any other's.
        """
        if len(alike) < 2:
            return (alike[0], False) if alike else (None, True)
        equal = [one for one in alike if are_equal(one.others, signs.others)]
        if len(equal) == 1:
            return equal[0], False
        ranked = sorted((distance(one.sample, signs.sample), place) for place, one in enumerate(equal or alike))
        (nearest, place), (second, _) = ranked[:2]
        is_told = nearest < NEAR and 2 * nearest < second
        return (equal or alike)[place] if is_told else None, nearest > NEAR

    def add(self, signs: Signs) -> Known:
        """A new branch."""
        taken = {known.name for known in self._known}
        names = (str(number) for number in range(len(taken) + 1))
        if signs.context is not None:
            names = (
                signs.context if not number else f"{signs.context} {number + 1}" for number in range(len(taken) + 1)
            )
        name = next(name for name in names if name not in taken)
        known = Known(name, (signs.context, signs.form), [snapshot(value) for value in signs.conditioning])
        self._known.append(known)
        return known

    def forget_oldest(self) -> str | None:
        """Name of a branch dropped because there are more than `MOST_BRANCHES`, or None."""
        return self._known.pop(0).name if len(self._known) > MOST_BRANCHES else None

    def let_go(self) -> None:
        """Hold no tensors of calls any longer; whoever still has them is told apart as before."""
        for known in self._known:
            known.conditioning = [weakened(seen) for seen in known.conditioning]
            known.sample = [weakened(seen) for seen in known.sample]
