"""Every rival: those in this folder, and those of other packages by the entry points of `relcache.rivals`."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from relcache.bench.rivals.attention_skips import FasterCache, PyramidAttentionBroadcast
from relcache.bench.rivals.base import Rival
from relcache.bench.rivals.dbcache import DBCache, MaskedDBCache, PolicyDBCache
from relcache.bench.rivals.dbprune import DBPrune
from relcache.bench.rivals.first_block_cache import FirstBlockCache
from relcache.bench.rivals.magcache import MagCache
from relcache.bench.rivals.seacache import SeaCache
from relcache.bench.rivals.solvers import SOLVERS, Solver
from relcache.bench.rivals.taylorseer import LiteTaylorSeerHook, TaylorSeerHook

GROUP = "relcache.rivals"  # of entry points, each a tuple of rivals

OURS: tuple[Rival, ...] = (
    *SOLVERS,
    TaylorSeerHook("diffusers-taylorseer-1", "diffusers TaylorSeer, m=1", 1),
    TaylorSeerHook("diffusers-taylorseer-2", "diffusers TaylorSeer, m=2", 2),
    LiteTaylorSeerHook("diffusers-taylorseer-lite-1", "diffusers TaylorSeer lite, m=1", 1),
    LiteTaylorSeerHook("diffusers-taylorseer-lite-2", "diffusers TaylorSeer lite, m=2", 2),
    FirstBlockCache("first-block-cache", "diffusers FirstBlockCache"),
    MagCache("magcache", "diffusers MagCache", 3, 0.2),
    MagCache("magcache-fast", "diffusers MagCache, K=5", 5, 0.1),
    MagCache("magcache-unlimited", "diffusers MagCache, any K", 0, 0.0),
    SeaCache("seacache", "diffusers SeaCache", 2),
    SeaCache("seacache-unlimited", "diffusers SeaCache, any number of skips", 0),
    PyramidAttentionBroadcast("pyramid-attention-broadcast", "diffusers Pyramid Attention Broadcast"),
    FasterCache("fastercache", "diffusers FasterCache"),
    DBCache("dbcache", "cache-dit DBCache"),
    DBCache("dbcache-taylorseer-1", "cache-dit DBCache + TaylorSeer, m=1", "TaylorSeer", 1),
    DBCache("dbcache-taylorseer-2", "cache-dit DBCache + TaylorSeer, m=2", "TaylorSeer", 2),
    DBCache("dbcache-foca", "cache-dit DBCache + FoCa", "FoCa"),
    DBCache("dbcache-dmd", "cache-dit DBCache + DMD", "DMD"),
    MaskedDBCache("dbcache-mask-taylorseer-1", "cache-dit TaylorSeer, m=1, step mask", "TaylorSeer", 1),
    MaskedDBCache("dbcache-mask-taylorseer-2", "cache-dit TaylorSeer, m=2, step mask", "TaylorSeer", 2),
    MaskedDBCache("dbcache-mask-foca", "cache-dit FoCa, step mask", "FoCa"),
    MaskedDBCache("dbcache-mask-dmd", "cache-dit DMD, step mask", "DMD"),
    PolicyDBCache("dbcache-policy", "cache-dit, own step masks"),
    PolicyDBCache("dbcache-policy-taylorseer-1", "cache-dit TaylorSeer, m=1, own step masks", "TaylorSeer", 1),
    PolicyDBCache(
        "dbcache-policy-dynamic", "cache-dit TaylorSeer, m=1, own step masks, dynamic", "TaylorSeer", 1, True
    ),
    DBPrune("dbprune", "cache-dit DBPrune"),
)
"""The rivals of this folder."""


@cache
def all_rivals() -> dict[str, Rival]:
    """Return every rival by name, those of other packages last.

    Raises:
        ValueError: a package's rivals cannot be loaded, or one has the name of another.
    """
    known = {rival.name: rival for rival in OURS}
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
