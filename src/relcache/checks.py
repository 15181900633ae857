"""Check the user's values and names. Imports nothing else of relcache."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import get_args

FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def check_whole(what: str, value: object, least: int, most: int | None = None, hint: str = "") -> None:
    """Raise ValueError unless `value` is an int of at least `least` and at most `most`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= least and (most is None or value <= most):  # type: ignore[operator]
        return
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{what} is a whole number {allowed}, got {value!r}{hint}")


def is_number(value: object) -> bool:
    """Return whether `value` is a finite int or float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_number(what: str, value: object, least: float = -math.inf, above: float = -math.inf) -> None:
    """Raise ValueError unless `value` is finite, at least `least` and greater than `above`."""
    if is_number(value) and value >= least and value > above:  # type: ignore[operator]
        return
    bound = f" of at least {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
    raise ValueError(f"{what} is a finite number{bound}, got {value!r}")


def check_share(what: str, value: object) -> None:
    """Raise ValueError unless `value` is a number from 0 to 1."""
    if not is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{what} is a number from 0 to 1, got {value!r}")


def check_choice(what: str, value: object, choices: object) -> None:
    """Raise ValueError unless `value` is one of the strings of the Literal type `choices`."""
    if value not in get_args(choices):
        raise ValueError(f"{what} is one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def nearest(name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return at most `most` of the `known` names that resemble `name`, the closest first; case does not matter."""
    by_lower = {other.lower(): other for other in known}
    return [by_lower[close] for close in difflib.get_close_matches(name.lower(), by_lower, most, cutoff)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint such as `"did you mean 'rfc'? "`, or an empty text if no name is close."""
    near = nearest(name, known)
    return f"did you mean {near[0]!r}? " if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown `name`: it suggests the closest known name and lists all."""
    known = list(known)
    return f"unknown {kind} {name!r}: {did_you_mean(name, known)}there are {', '.join(known)}"


def bytes_from(size: int | str) -> int:
    """Return `size` in bytes. It is a whole number of bytes, or text with a unit: "6GB", "800 MB", "6.5 GiB".

    Raises:
        ValueError: the size is something else, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b\s*", str(size), re.IGNORECASE)
    if isinstance(size, str) and match:
        amount = int(float(match.group(1)) * FACTORS[match.group(2).lower()])
    elif isinstance(size, int) and not isinstance(size, bool):
        amount = size
    else:
        raise ValueError(
            "a memory limit is a number of bytes or a text such as '6GB', '800 MB' or '6 GiB' "
            f"(kB, MB, GB, TB, KiB, MiB, GiB, TiB); got {size!r}"
        )
    if amount < 1:
        raise ValueError(f"a memory limit is at least one byte, got {size!r}")
    return amount


def as_text(amount: int) -> str:
    """Return `amount` bytes as text with three digits and a unit."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if amount >= factor:
            return f"{amount / factor:.3g} {unit}"
    return f"{amount} B"
