"""Amounts of memory as people write them."""

from __future__ import annotations

import re

FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def bytes_from(size: int | str) -> int:
    """`size` in bytes: a whole number of them, or text with a unit, "6GB", "800 MB", "6.5 GiB".

    Raises:
        ValueError: neither of these, or no bytes at all.
    """
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b\s*", size, re.IGNORECASE) if isinstance(size, str) else None
    )
    factor = FACTORS.get(match.group(2).lower()) if match else None
    if match is not None and factor is not None:
        amount = int(float(match.group(1)) * factor)
    elif isinstance(size, int) and not isinstance(size, bool):
        amount = size
    else:
        raise ValueError(
            "a memory limit is a whole number of bytes, or a number with a unit, such as '6GB', '800 MB' or '6 GiB' "
            f"(kB, MB, GB, TB, and KiB, MiB, GiB, TiB); got {size!r}"
        )
    if amount < 1:
        raise ValueError(f"a memory limit is at least one byte, got {size!r}")
    return amount


def as_text(amount: int) -> str:
    """`amount` bytes with three digits and a unit."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if amount >= factor:
            return f"{amount / factor:.3g} {unit}"
    return f"{amount} B"
