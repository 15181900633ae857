"""Quality at equal measured time: the best peer in the time that a method takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A run on a curve: its time as a share of full compute's, and its quality."""

    time: float
    quality: float


def quality_at(time: float, curve: Sequence[Point]) -> float | None:
    """Return the quality of a curve at a time, linear between its points.

    After its slowest point the quality stays that point's; before its fastest point it is None.
    """
    points = sorted(curve)
    if not points or time < points[0].time:
        return None
    left = max(point for point in points if point.time <= time)
    right = next((point for point in points if point.time > time), left)
    if right is left:
        return left.quality
    return left.quality + (time - left.time) / (right.time - left.time) * (right.quality - left.quality)


def with_best_peer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add the best peer at equal time to each row of a method: `peer_psnr`, `best_peer` and `lead`.

    All three are None if no peer is as fast, and in the rows of peers and full compute.
    """
    curves: dict[str, list[Point]] = {}
    for row in rows:
        if row["peer"]:
            curves.setdefault(row["method"], []).append(Point(row["share"], row["psnr"]))
    judged = []
    for row in rows:
        best: tuple[float, str] | None = None
        if not row["peer"] and row["psnr"] is not None:
            qualities = {name: quality_at(row["share"], curve) for name, curve in curves.items()}
            best = max(((quality, name) for name, quality in qualities.items() if quality is not None), default=None)
        quality, name = best or (None, None)
        lead = None if quality is None else row["psnr"] - quality
        judged.append({**row, "peer_psnr": quality, "best_peer": name, "lead": lead})
    return judged
