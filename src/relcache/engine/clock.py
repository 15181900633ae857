"""The times of a request's steps. On a CUDA device they are events, so that nothing waits for the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Remembers when each step began, and when its last call ended.

    Args:
        waits: whether to wait, at the beginning of each step, for a device that has no events.
    """

    def __init__(self, waits: bool = False):
        self._waits = waits
        self._began: list[Any] = []
        self._ended: tuple[int, Any] = (0, None)  # the number of steps that had begun, and the moment
        self.is_exact = True  # whether all moments are those of the device

    def begin_step(self, device: torch.device) -> None:
        """Remember that a step begins on `device`."""
        if self._waits and device.type not in ("cpu", "cuda"):
            torch.accelerator.synchronize(device)
        self._began.append(self._now(device))

    def end_call(self, device: torch.device) -> None:
        """Remember that a call has ended; that of a step's last call ends the step."""
        self._ended = len(self._began), self._now(device)

    def begun(self) -> list[float]:
        """Return the seconds of each step but the last, from its beginning to the next one's. Waits for the device."""
        return _between(self._began)

    def seconds(self) -> list[float]:
        """Return the seconds of each step that has ended; the last one ends with its last call. Waits for the device.

        Work between the calls counts, such as the scheduler's update or another loop's calls.
        """
        begun, moment = self._ended
        return _between([*self._began, moment] if begun == len(self._began) > 0 else self._began)

    def _now(self, device: torch.device) -> Any:
        """Return an event on CUDA, and the host's time elsewhere."""
        if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(device))
            return event
        self.is_exact &= device.type == "cpu"
        return time.perf_counter()


def _between(moments: Sequence[Any]) -> list[float]:
    """Return the seconds from each moment to the next: all are events, or all are seconds."""
    events = [moment for moment in moments if not isinstance(moment, float)]
    if not events:
        return [second - first for first, second in pairwise(moments)]
    if len(events) < len(moments):  # a CUDA graph was captured in between
        return []
    events[-1].synchronize()
    return [first.elapsed_time(second) / 1e3 for first, second in pairwise(events)]
