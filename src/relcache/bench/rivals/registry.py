"""Every rival: the solvers, and those of other packages by the entry points of `relcache.rivals`."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from relcache.bench.rivals.base import Rival
from relcache.bench.rivals.solvers import SOLVERS, Solver
from relcache.methods import BY_NAME

GROUP = "relcache.rivals"  # of entry points, each a tuple of rivals
NAME = re.compile("[a-z0-9-]+")


BROKEN: list[str] = []
"""Why packages of other rivals cannot be used; told where such a rival may be meant."""


@cache
def all_rivals() -> dict[str, Rival]:
    """Return every rival by name, those of other packages last, and without those in `BROKEN`."""
    known: dict[str, Rival] = {solver.name: solver for solver in SOLVERS}
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else point.value
        try:
            rivals = tuple(point.load())
        except Exception as error:
            BROKEN.append(
                f"the contestants of the package {package} cannot be loaded ({error}): repair or uninstall it"
            )
            continue
        for rival in rivals:
            if not isinstance(rival, Rival):
                BROKEN.append(f"{rival!r:.60} of the package {package} is no Rival: repair or uninstall it")
            elif rival.name in known or rival.name in BY_NAME or not NAME.fullmatch(rival.name):
                BROKEN.append(
                    f"{rival.name!r} of the package {package} is the name of another contestant, or has signs besides "
                    "small letters, digits and dashes: repair or uninstall it"
                )
            else:
                known[rival.name] = rival
    return known


def rival_of(config: Mapping[str, Any]) -> Rival | None:
    """Return the rival that a config names; None if it names a method of relcache."""
    return all_rivals().get(str(config.get("method")).lower())


def is_solver(name: str) -> bool:
    """Whether a contestant is no cache, but a solver with fewer steps."""
    rival = all_rivals().get(name)
    return rival is not None and rival.group == Solver.group
