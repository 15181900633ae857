"""Every rival: the solvers, and those of other packages by the entry points of `relcache.rivals`."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from relcache.bench.rivals.base import Rival
from relcache.bench.rivals.solvers import SOLVERS, Solver

GROUP = "relcache.rivals"  # of entry points, each a tuple of rivals


@cache
def all_rivals() -> dict[str, Rival]:
    """Return every rival by name, those of other packages last.

    Raises:
        ValueError: a package's rivals cannot be loaded, or one has the name of another.
    """
    known: dict[str, Rival] = {solver.name: solver for solver in SOLVERS}
    for package, rival in _installed():
        if known.setdefault(rival.name, rival) is not rival:
            raise ValueError(f"{rival.name!r} of the package {package} is the name of another contestant: uninstall it")
    return known


def rival_of(config: Mapping[str, Any]) -> Rival | None:
    """Return the rival that a config names; None if it names a method of relcache."""
    return all_rivals().get(str(config.get("method")).lower())


def is_solver(name: str) -> bool:
    """Whether a contestant is no cache, but a solver with fewer steps."""
    rival = all_rivals().get(name)
    return rival is not None and rival.group == Solver.group


def _installed() -> Iterator[tuple[str, Rival]]:
    """Load the rivals of other packages, each with the name of its package."""
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else point.value
        try:
            rivals = tuple(point.load())
        except Exception as error:
            raise ValueError(
                f"the contestants of the package {package} cannot be loaded ({error}): repair or uninstall it"
            ) from error
        wrong = next((rival for rival in rivals if not isinstance(rival, Rival)), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r:.60} of the package {package} is no Rival: repair or uninstall it")
        yield from ((package, rival) for rival in rivals)
