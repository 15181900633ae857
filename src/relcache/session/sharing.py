"""Find the processes that share a session's models, before each request, and let the cache decide with them."""

from __future__ import annotations

from torch import nn

from relcache.engine.cache import Cache
from relcache.engine.host import Host
from relcache.engine.ranks import ALONE, MAY_SHARE, NO_LIMIT, Ranks, process_count
from relcache.session.requests import Requests
from relcache.warning import warn


class Sharing:
    """The processes that take the same full steps as this one.

    Args:
        chosen: those that the user passed.
        cache, requests: those of the session.
        has_limit: whether the session has a memory limit.
    """

    def __init__(self, chosen: Ranks, cache: Cache, requests: Requests, has_limit: bool):
        self._chosen, self._cache, self._requests, self._has_limit = chosen, cache, requests, has_limit
        self._last: Host | None = None
        self._has_warned = False

    def knows(self, host: Host) -> bool:
        """Return whether `host` is the one whose processes were last looked for."""
        return host is self._last

    def look(self, host: Host, model: nn.Module, compiled: bool = False) -> None:
        """Take the same full steps as the processes that share `model`. If others share it than before, drop features.

        Raises:
            ValueError: it does not show which processes do, or a request's method cannot be shared.
        """
        self._last = host
        ranks = host.ranks(model, compiled, self._chosen) if process_count() > 1 else ALONE
        if not ranks.groups and process_count() > 1 and self._cache.reads_error and not self._has_warned:
            self._has_warned = True
            warn(MAY_SHARE.format(process_count()))
        if ranks == self._requests.ranks:
            return
        if ranks.weights and self._has_limit:
            raise ValueError(NO_LIMIT)
        self._requests.share(ranks)
        for run in self._requests.all:
            self._cache.free(run.request)
