"""Let one thread at a time call the transformers of a session. Knows nothing of caching."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from relcache.session.caller import Mark, is_alive, mark_of

PATIENCE = 0.1  # seconds between a waiting thread's checks that the call in progress is still running
HERE = __name__.partition(".")[0] + "."


class Turn:
    """The turn to call: taken when a call begins, released when it ends.

    If the end of a call goes unnoticed, any thread may take the turn once the calling frame has ended.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: int | None = None
        self._mark: weakref.ref[Mark] | None = None  # of the calling frame

    @property
    def is_mine(self) -> bool:
        """Whether the call in progress is this thread's."""
        return self._thread == threading.get_ident()

    def take(self) -> bool:
        """Wait for the turn, and take it. Return whether the last call was interrupted unnoticed."""
        with self._changed:
            while not self.is_mine and self._is_running:
                self._changed.wait(PATIENCE)
            interrupted = self._thread is not None
            frame = _outside()
            self._thread = threading.get_ident()
            self._mark = weakref.ref(mark_of(frame)) if frame is not None else None
            return interrupted

    @property
    def _is_running(self) -> bool:
        """Whether a call is in progress, judged by its thread and frame."""
        if self._thread is None:
            return False
        return is_alive(self._thread) and self._mark is not None and self._mark() is not None

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Take the turn outside a call, yield the result of `take`, and release the turn."""
        try:
            yield self.take()
        finally:
            self.release()

    def release(self) -> None:
        """Release the turn after the call."""
        with self._changed:
            if self.is_mine:
                self._thread = None
                self._changed.notify()


def _outside() -> FrameType | None:
    """Return the frame that called into relcache, which lasts as long as the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(HERE):
        frame = frame.f_back
    return frame
