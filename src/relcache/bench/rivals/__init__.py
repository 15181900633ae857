"""The alternatives to relcache, a file for each."""

from relcache.bench.rivals.base import Rival
from relcache.bench.rivals.dbcache import DBCache, MaskedDBCache
from relcache.bench.rivals.equations import EQUATIONS
from relcache.bench.rivals.first_block_cache import FirstBlockCache
from relcache.bench.rivals.solvers import SOLVERS
from relcache.bench.rivals.taylorseer import TaylorSeerHook

RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        *SOLVERS,
        TaylorSeerHook("diffusers-taylorseer-1", "diffusers TaylorSeer, m=1", 1),
        TaylorSeerHook("diffusers-taylorseer-2", "diffusers TaylorSeer, m=2", 2),
        FirstBlockCache("first-block-cache", "diffusers FirstBlockCache"),
        DBCache("dbcache", "cache-dit DBCache"),
        DBCache("dbcache-taylorseer-1", "cache-dit DBCache + TaylorSeer, m=1", 1),
        DBCache("dbcache-taylorseer-2", "cache-dit DBCache + TaylorSeer, m=2", 2),
        MaskedDBCache("dbcache-mask-taylorseer-1", "cache-dit TaylorSeer, m=1, step mask", 1),
        *EQUATIONS,
    )
}
"""Every rival, by name."""

__all__ = ["RIVALS", "Rival"]
