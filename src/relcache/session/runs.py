"""The requests in progress, one for each caller, and whether they have ended.

A request has ended when its pipeline says so, or when the pipeline's call or its thread has ended. Its cache is then
useless. A hand-written loop without a name is identified by its thread. If it continues in another thread, as in a
thread pool, it is identified by the signs of its calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from relcache.engine.state import Request
from relcache.method import Method
from relcache.session.branches import Loop, Signs
from relcache.session.caller import Caller, Mark, Named, is_alive
from relcache.session.tracker import Tracker

MOST_WITHOUT_NAME = 8


@dataclass(eq=False)
class Run:
    """The calls of one caller.

    Attributes:
        key: the caller's mark or name, referenced weakly; None for a loop without a name.
        thread: thread of its last call.
        tracker: tells its requests and steps apart.
        request: its present request.
        method: of its next request.
        loop: the state of its loop when the request began.
        pipeline: the running pipeline; None for a hand-written loop.
        scheduler: the scheduler that takes the transformer's outputs; None if unknown.
        size: size of the request's first call.
        way: the way of storing its features, under a memory limit.
        calls: the calls of the request's branches, under a memory limit.
        ended: whether its pipeline has ended the request.
        roams: whether it was called from several threads.
    """

    key: weakref.ref[Mark | Named] | None
    thread: int
    tracker: Tracker
    request: Request | None = None
    method: Method | None = None
    loop: Loop | None = None
    pipeline: weakref.ref[Any] | None = None
    scheduler: weakref.ref[Any] | None = None
    size: Any = None
    way: Any = None
    calls: dict[Any, Any] = field(default_factory=dict)
    ended: bool = False
    roams: bool = False

    @property
    def is_live(self) -> bool:
        """Whether its next call may continue its request."""
        if self.ended:
            return False
        if self.key is None:
            has_ended = self.request is not None and self.request.has_ended
            return not has_ended and is_alive(self.thread)
        key = self.key()
        return key is not None and (not isinstance(key, Mark) or key.is_running)


class Runs:
    """The runs of one session, in the order of their last calls."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    def of(self, caller: Caller, signs: Signs, tracker: Callable[[], Tracker]) -> Run:
        """Return the run of a caller; a new one if there is none."""
        run = self.get(caller)
        if caller.key is None:
            others = [other for other in self._runs if other.key is None and other is not run and not other.ended]
            if others and (run is None or not run.tracker.follows(signs)):
                run = next((other for other in reversed(others) if other.tracker.follows(signs)), run)
            if run is not None and run.roams and not run.tracker.follows(signs):
                run = None  # its loop continues in another thread
        if run is None or run.ended:
            run = Run(weakref.ref(caller.key) if caller.key is not None else None, caller.thread, tracker())
        run.roams = run.roams or run.thread != caller.thread
        run.thread = caller.thread
        self._runs = [*(other for other in self._runs if other is not run), run]
        return run

    def get(self, caller: Caller) -> Run | None:
        """Return the run of a caller; None if there is none. A loop without a name gets the last one of its thread."""
        if caller.key is not None:
            return next((run for run in self._runs if run.key is not None and run.key() is caller.key), None)
        return next((run for run in reversed(self._runs) if run.key is None and run.thread == caller.thread), None)

    def prune(self, present: Run) -> list[Run]:
        """Remove and return the runs that have ended, and all but the last few loops without a name."""
        old = [run for run in self._runs if run.key is None][:-MOST_WITHOUT_NAME]
        ended = [run for run in self._runs if run is not present and (run in old or not run.is_live)]
        self._runs = [run for run in self._runs if run not in ended]
        return ended

    def remove(self, thread: int | None = None) -> None:
        """Remove the runs of a thread, by default of all threads."""
        self._runs = [run for run in self._runs if thread is not None and run.thread != thread]
