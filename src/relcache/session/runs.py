"""The requests in progress, one for each caller, and which of them are over.

A request is over when its pipeline says so, or when the pipeline's call or its thread has ended; its cache is then of
no use. A loop written by hand without a name is known by its thread. Where it goes on in another thread, as with a
pool of threads, it is known by the signs of its calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from relcache.engine.state import Request
from relcache.session.branches import Loop, Signs
from relcache.session.caller import Caller, Mark, Named, is_alive
from relcache.session.tracker import Tracker

MOST_WITHOUT_NAME = 8


@dataclass(eq=False)
class Run:
    """The calls of one caller.

    Attributes:
        sign: dies with the frame of a pipeline's call, or with a loop's name; None for a loop without a name.
        thread: of its last call.
        tracker: tells its requests and steps apart.
        request: its present request.
        loop: as the scheduler showed it when the request began.
        pipeline: the one that runs; None for a loop written by hand.
        scheduler: the one that takes the transformer's outputs, where it is known.
        size: of the request's first call.
        way: how its features are kept, under a memory limit.
        calls: those of the request's branches, under a memory limit.
        ended: whether its pipeline has ended the request.
        roams: whether it was called in several threads.
    """

    sign: weakref.ref[Mark | Named] | None
    thread: int
    tracker: Tracker
    request: Request | None = None
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
        """Whether its next call may go on with its request."""
        if self.ended:
            return False
        if self.sign is None:
            over = self.request is not None and self.request.has_ended
            return not over and is_alive(self.thread)
        sign = self.sign()
        return sign is not None and (not isinstance(sign, Mark) or sign.is_running)


class Runs:
    """The runs of one session, ordered by their last calls."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs))

    def of(self, caller: Caller, signs: Signs, tracker: Callable[[], Tracker]) -> Run:
        """Return the run of a caller, a new one if there is none."""
        run = self.get(caller)
        if caller.sign is None:
            others = [one for one in self._runs if one.sign is None and one is not run and not one.ended]
            if others and (run is None or not run.tracker.follows(signs)):
                run = next((one for one in reversed(others) if one.tracker.follows(signs)), run)
            if run is not None and run.roams and not run.tracker.follows(signs):
                run = None  # its loop goes on elsewhere
        if run is None or run.ended:
            run = Run(weakref.ref(caller.sign) if caller.sign is not None else None, caller.thread, tracker())
        run.roams = run.roams or run.thread != caller.thread
        run.thread = caller.thread
        self._runs = [*(one for one in self._runs if one is not run), run]
        return run

    def get(self, caller: Caller) -> Run | None:
        """Return the run of a caller, None if there is none. For a loop without a name it is the thread's last."""
        if caller.sign is not None:
            return next((run for run in self._runs if run.sign is not None and run.sign() is caller.sign), None)
        return next((run for run in reversed(self._runs) if run.sign is None and run.thread == caller.thread), None)

    def prune(self, present: Run) -> list[Run]:
        """Remove and return the runs that are over, and all but the last few loops without a name."""
        old = [run for run in self._runs if run.sign is None][:-MOST_WITHOUT_NAME]
        over = [run for run in self._runs if run is not present and (run in old or not run.is_live)]
        self._runs = [run for run in self._runs if run not in over]
        return over

    def remove(self, thread: int | None = None) -> None:
        """Remove the runs of a thread, or all."""
        self._runs = [run for run in self._runs if thread is not None and run.thread != thread]
