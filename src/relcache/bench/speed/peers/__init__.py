"""Caching methods of other libraries, a file for each."""

from relcache.bench.speed.peers.base import Peer
from relcache.bench.speed.peers.dbcache import dbcache
from relcache.bench.speed.peers.first_block_cache import first_block_cache
from relcache.bench.speed.peers.taylorseer import taylorseer

PEERS: tuple[Peer, ...] = (
    taylorseer(1),
    taylorseer(2),
    first_block_cache(),
    dbcache(),
    dbcache(1),
    dbcache(2),
    dbcache(1, fixed=True),
)
"""The contestants that `--peers` adds."""

__all__ = ["PEERS", "Peer"]
