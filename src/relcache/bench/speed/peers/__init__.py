"""Methods of other libraries that skip the same work: one file for each, and the list of them.

Each is a budget, an interval or a threshold, and a context in which a transformer works so. They are asked for at the
number of full steps of the methods beside them.
"""

from relcache.bench.speed.peers.base import Peer
from relcache.bench.speed.peers.dbcache import dbcache, dbcache_at_fixed_steps, dbcache_taylorseer
from relcache.bench.speed.peers.first_block_cache import first_block_cache
from relcache.bench.speed.peers.taylorseer import taylorseer

PEERS: tuple[Peer, ...] = (
    taylorseer(1),
    taylorseer(2),
    first_block_cache(),
    dbcache(),
    dbcache_taylorseer(1),
    dbcache_taylorseer(2),
    dbcache_at_fixed_steps(1),
)
"""What `--peers` adds."""

__all__ = ["PEERS", "Peer"]
