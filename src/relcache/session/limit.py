"""Keep the cache within a memory limit: choose how features are stored, for each request and each new branch."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from relcache.engine.cache import Cache
from relcache.memory.choice import Call, Chooser, Way
from relcache.session.requests import Requests
from relcache.session.tracker import Position
from relcache.shapes.meta import sketch

MOST_KNOWN = 64  # kinds of requests with known branches


class Limit:
    """The most memory that the cache may take on the device.

    Args:
        most: in bytes.
        chooser: finds the best way of storing features within it.
        requests, cache: those of the session.
    """

    def __init__(self, most: int, chooser: Chooser, requests: Requests, cache: Cache):
        self._most, self._chooser, self._requests, self._cache = most, chooser, requests, cache
        self._known_calls: dict[Hashable, dict[Any, Call]] = {}  # a request's calls, by the shapes of the first

    def way_for(self, call: Call, position: Position, movable: bool, present: Way) -> tuple[Way, str | None]:
        """Return the way of storing a call's features, and a note if it is new. Drop other requests' features.

        `movable`: whether the features are on a device with its own memory; `present`: the way in use.

        Raises:
            ValueError: no way keeps the cache within the limit.
        """
        run = self._requests.run
        assert run is not None
        for other in self._requests.all:
            if other is not run and other.request is not None:
                if other.is_live and other.request.has_features:
                    self._requests.note("limit", run=other)
                self._cache.free(other.request)
        if position.new_request:
            run.calls = self._known_calls.setdefault(call.shapes, {})
            while len(self._known_calls) > MOST_KNOWN:
                self._known_calls.pop(next(iter(self._known_calls)))
        if position.dropped is not None:
            run.calls.pop((call.host.index, position.dropped), None)
        key = call.host.index, position.branch
        is_known = key in run.calls and run.calls[key].shapes == call.shapes
        if is_known and not position.new_request:
            return run.way, None
        if not is_known:
            with suppress(Exception):  # arguments that cannot be copied
                call = replace(call, inputs=sketch(call.inputs))
            run.calls[key] = call
        try:
            choice = self._chooser.choose(self._most, list(run.calls.values()), movable)
        except ValueError:
            run.calls.clear()  # the next request may have fewer branches
            raise
        text = str(choice)
        if choice.way != present and not position.new_request and run.request is not None:
            step = run.request.step + position.new_step
            text += f"; chosen at step {step}, when branch {position.branch!r} came: its cache was dropped"
        run.way = choice.way
        return choice.way, text
