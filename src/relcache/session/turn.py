"""One call at a time: a call of another thread waits until the one in progress has ended. Knows nothing of caching."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from relcache.session.caller import Mark, is_alive, mark_of

PATIENCE = 0.1  # seconds until a waiting thread looks whether the call in progress is still running
HERE = __name__.partition(".")[0] + "."


class Turn:
    """Taken at the beginning of a call and given back at its end.

    Where the end of a call is not seen, its thread, or one that waits, takes over once the calling frame is gone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: int | None = None
        self._mark: weakref.ref[Mark] | None = None  # of the frame that calls

    @property
    def is_mine(self) -> bool:
        """Whether this thread's call is the one in progress."""
        return self._thread == threading.get_ident()

    def take(self) -> bool:
        """Wait for one's turn; whether the call before was broken off unseen."""
        with self._changed:
            while not self.is_mine and self._goes_on:
                self._changed.wait(PATIENCE)
            broken_off = self._thread is not None
            frame = _outside()
            self._thread = threading.get_ident()
            self._mark = weakref.ref(mark_of(frame)) if frame is not None else None
            return broken_off

    @property
    def _goes_on(self) -> bool:
        """Whether a call is in progress, as far as can be seen."""
        if self._thread is None:
            return False
        return is_alive(self._thread) and self._mark is not None and self._mark() is not None

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Wait until no other thread's call is in progress, and let none begin; whether one of this thread's was."""
        try:
            yield self.take()
        finally:
            self.give()

    def give(self) -> None:
        """The call has ended."""
        with self._changed:
            if self.is_mine:
                self._thread = None
                self._changed.notify()


def _outside() -> FrameType | None:
    """The frame that called into relcache: it lasts as long as the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(HERE):
        frame = frame.f_back
    return frame
