"""Caches of diffusers, of cache-dit and of the literature, as contestants of relcache's race; a file for each."""

from relcache.bench.rivals.base import Rival
from relcache_rivals.attention_skips import FasterCache, PyramidAttentionBroadcast
from relcache_rivals.dbcache import DBCache, MaskedDBCache, PolicyDBCache
from relcache_rivals.dbprune import DBPrune
from relcache_rivals.equations import EQUATIONS
from relcache_rivals.first_block_cache import FirstBlockCache
from relcache_rivals.magcache import MagCache
from relcache_rivals.seacache import SeaCache
from relcache_rivals.taylorseer import LiteTaylorSeerHook, TaylorSeerHook

RIVALS: tuple[Rival, ...] = (
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
    *EQUATIONS,
)
"""Every rival of this package."""

__all__ = ["RIVALS"]
