"""Keeps the cache within a memory limit: chooses how features are kept for a request, and again for a new branch."""

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

MOST_USUAL = 64  # requests whose branches are remembered


class Limit:
    """The most memory that the cache may take on the device.

    Args:
        most: in bytes.
        chooser: finds the best way to keep features within it.
        requests, cache: of the session.
    """

    def __init__(self, most: int, chooser: Chooser, requests: Requests, cache: Cache):
        self._most, self._chooser, self._requests, self._cache = most, chooser, requests, cache
        self._usual: dict[Hashable, dict[Any, Call]] = {}  # a request's calls, by the shapes of its first

    def keep(self, call: Call, position: Position, movable: bool, present: Way) -> tuple[Way, str | None]:
        """Return how features are kept in a call, and a note if that was chosen now. Drop other requests' features.

        `movable` says whether its features are on a device with a memory of its own, `present` how they are kept now.

        Raises:
            ValueError: nothing keeps the cache within the limit.
        """
        run = self._requests.run
        assert run is not None
        for other in self._requests.all:
            if other is not run and other.request is not None:
                if other.is_live and other.request.holds_features:
                    self._requests.note("limit", run=other)
                self._cache.free(other.request)
        if position.new_request:
            run.calls = self._usual.setdefault(call.shapes, {})
            while len(self._usual) > MOST_USUAL:
                self._usual.pop(next(iter(self._usual)))
        if position.dropped is not None:
            run.calls.pop((call.host.place, position.dropped), None)
        key = call.host.place, position.branch
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
