"""The requests that run at the same time, one for each caller, and which of them are over.

A request is over when its pipeline says so, when the frame of the pipeline's call is gone, or its thread. What is
cached for it is then of no use. Of loops written by hand in one thread the last is taken to be the only one, unless the
caller names them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from relcache.caller import Caller, Mark, Named, is_alive
from relcache.request import Request
from relcache.tracker import Loop, Tracker

MOST_RUNS = 8


@dataclass
class Run:
    """What is known of one caller.

    Attributes:
        sign: dies with the frame of a pipeline's call, or with the name of a loop; None of a loop without a name.
        thread: in which it was called last.
        tracker: tells its requests and steps apart.
        request: its present request.
        loop: what its scheduler showed at the request's beginning.
        calls: the calls of the request's branches, where there is a memory limit.
    """

    sign: weakref.ref[Mark | Named] | None
    thread: int
    tracker: Tracker
    request: Request | None = None
    loop: Loop | None = None
    calls: dict[Any, Any] = field(default_factory=dict)
    ended: bool = False

    @property
    def is_live(self) -> bool:
        """Whether its next call may go on with its request, as far as can be seen from another one's."""
        if self.ended:
            return False
        if self.sign is not None:
            return self.sign() is not None
        return self.thread != threading.get_ident() and is_alive(self.thread)


class Runs:
    """Those of one session."""

    def __init__(self) -> None:
        self._runs: dict[Hashable, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def of(self, caller: Caller, tracker: Callable[[], Tracker]) -> Run:
        """The run of a caller, made if there is none."""
        run = self._runs.pop(caller.key, None)
        if run is None or run.ended:
            certain = caller.mark or caller.name
            run = Run(weakref.ref(certain) if certain is not None else None, caller.thread, tracker())
        run.thread = caller.thread
        self._runs[caller.key] = run  # the last one last
        return run

    def get(self, caller: Caller) -> Run | None:
        """The run of a caller, if there is one."""
        return self._runs.get(caller.key)

    def prune(self, present: Run) -> list[Run]:
        """Take out and return those that are over, and the oldest if there are more than `MOST_RUNS`."""
        over = [key for key, run in self._runs.items() if run is not present and not run.is_live]
        left = [key for key, run in self._runs.items() if run is not present and key not in over]
        return [self._runs.pop(key) for key in [*over, *left[: max(len(left) + 1 - MOST_RUNS, 0)]]]

    def forget(self, thread: int | None = None) -> None:
        """Take out those of a thread, or all."""
        self._runs = {key: run for key, run in self._runs.items() if thread is not None and run.thread != thread}
