"""Names that a user gives, held against those that there are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str], most: int = 1, cutoff: float = 0.5) -> list[str]:
    """At most `most` of the `known` names that are like `given`, the likest first; capitals do not count."""
    by_lower = {name.lower(): name for name in known}
    return [by_lower[found] for found in difflib.get_close_matches(given.lower(), by_lower, most, cutoff)]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`"did you mean 'rfc'? "`, or nothing where no name is near."""
    near = nearest(given, known)
    return f"did you mean {near[0]!r}? " if near else ""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The sentence that refuses a name: what it was to name, the nearest right one, and all that there are."""
    known = list(known)
    return f"unknown {kind} {given!r}: {did_you_mean(given, known)}there are {', '.join(known)}"
