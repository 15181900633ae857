"""Keeps the cache of a session within a limit of memory: before a request, and where a branch comes that was not known.

Knows the chooser and the calls of a request; how the session changes over is its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from relcache.engine.cache import Cache
from relcache.engine.host import Host
from relcache.memory.choice import Call, Choice, Chooser, Way, has_own_memory
from relcache.models.spec import ModelSpec
from relcache.session.requests import Arrival, Requests
from relcache.shapes.meta import sketch

MOST_USUAL = 64  # requests whose branches are remembered

Calls = dict[Any, Call]
"""Those of one request, by transformer and branch."""


class Limit:
    """What the cache may take of the device's memory.

    Args:
        most: in bytes.
        chooser: finds the best way to hold features that keeps within it.
        requests, cache: those of the session.
    """

    def __init__(self, most: int, chooser: Chooser, requests: Requests, cache: Cache):
        self._most, self._chooser, self._requests, self._cache = most, chooser, requests, cache
        self._usual: dict[Hashable, Calls] = {}  # calls of a request by the shapes of its first

    def keep(
        self,
        host: Host,
        spec: ModelSpec,
        arrival: Arrival,
        shapes: Hashable,
        given: dict[str, Any],
        tensors: Sequence[Tensor],
        present: Way,
    ) -> tuple[Way, str | None]:
        """How features are to be held in a call, and what is to be said of that, if it was chosen now.

        What other requests have cached is dropped; `present` is how features are held now.

        Raises:
            ValueError: nothing keeps the cache within the limit.
        """
        run, place = self._requests.run, arrival.place
        assert run is not None
        assert place.branch is not None
        for other in self._requests.all:
            if other is not run and other.request is not None:
                if other.is_live and other.request.holds_features:
                    self._requests.note("limit", run=other)
                self._cache.free(other.request)
        if arrival.begins:
            run.calls = self._calls_of(shapes)
        if place.forgotten is not None:
            run.calls.pop((host.place, place.forgotten), None)
        known = run.calls.get((host.place, place.branch))
        if known is not None and known.shapes == shapes and not arrival.begins:
            return run.way, None
        movable = any(has_own_memory(tensor.device) for tensor in tensors)
        choice = self._choose(run.calls, host, spec, place.branch, shapes, given, movable)
        text = str(choice)
        if choice.way != present and not arrival.begins and run.request is not None:
            step = run.request.step + place.new_step
            text += f"; chosen at step {step}, when branch {place.branch!r} came: what was cached was dropped"
        run.way = choice.way
        return choice.way, text

    def _calls_of(self, shapes: Hashable) -> Calls:
        """The calls that a request made before which began with a call of these shapes."""
        calls = self._usual.setdefault(shapes, {})
        while len(self._usual) > MOST_USUAL:
            self._usual.pop(next(iter(self._usual)))
        return calls

    def _choose(
        self,
        calls: Calls,
        host: Host,
        spec: ModelSpec,
        branch: str,
        shapes: Hashable,
        given: dict[str, Any],
        movable: bool,
    ) -> Choice:
        """How features are to be held for `calls` and one more of these shapes and arguments, which is added to them.

        Raises:
            ValueError: nothing keeps the cache within the limit.
        """
        known = calls.get((host.place, branch))
        if known is None or known.shapes != shapes:
            try:
                inputs = sketch(given)
            except Exception:  # arguments that cannot be copied
                inputs = given
            calls[host.place, branch] = Call(host, spec, shapes, inputs)
        try:
            return self._chooser.choose(self._most, list(calls.values()), movable)
        except ValueError:
            calls.clear()  # the next request may have fewer branches
            raise
