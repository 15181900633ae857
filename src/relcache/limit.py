"""Keeps the cache of a session within a limit of memory: before a request, and where a branch comes that was not known.

Knows the chooser and the calls of a request; how the session changes over is its own.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from relcache.host import Host
from relcache.memory import Call, Choice, Chooser
from relcache.meta import sketch
from relcache.models.base import ModelSpec

MOST_USUAL = 64  # requests whose branches are remembered

Calls = dict[Any, Call]
"""Those of one request, by transformer and branch."""


class Limit:
    """What the cache may take of the device's memory, in bytes."""

    def __init__(self, most: int, chooser: Chooser):
        self._most, self._chooser = most, chooser
        self._usual: dict[Hashable, Calls] = {}  # calls of a request by the shapes of its first

    def usual(self, shapes: Hashable) -> Calls:
        """The calls that a request made before which began with a call of these shapes."""
        calls = self._usual.setdefault(shapes, {})
        while len(self._usual) > MOST_USUAL:
            self._usual.pop(next(iter(self._usual)))
        return calls

    def choose(
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
