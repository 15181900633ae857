"""Time each call of a transformer, and record whether it was full."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from relcache.models import ModelSpec


def keep_memory() -> bool:
    """Let the C library keep freed memory, as torch's GPU allocator does; return whether it can.

    By default glibc returns large blocks to the system. Cached features would then take fresh pages at each full
    step, and the first use of a page takes time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    top_pad, trim_threshold, most_maps = -2, -1, -4  # M_TOP_PAD, M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return all([mallopt(top_pad, 2**28), mallopt(trim_threshold, -1), mallopt(most_maps, 0)])


class Clock:
    """Moments on a device; on a GPU they are events in its stream, so that timing does not synchronize."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._device = device

    def now(self) -> Any:
        """Return this moment."""
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, began: Any, ended: Any) -> float:
        """Return the seconds from one moment to another."""
        if not self._events:
            return ended - began
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3


@dataclass
class Laps:
    """The beginning and end of each call, and whether it was full. Only full calls run a layer of the last unit."""

    clock: Clock
    calls: list[tuple[Any, Any, bool]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of denoising, from the first call's beginning to the last call's end."""
        return self.clock.between(self.calls[0][0], self.calls[-1][1])

    @property
    def each(self) -> list[tuple[float, bool]]:
        """Seconds of each call, and whether it was full."""
        return [(self.clock.between(began, ended), full) for began, ended, full in self.calls]

    @property
    def full(self) -> int:
        """Number of full calls."""
        return sum(full for _, _, full in self.calls)


@contextmanager
def timed(model: nn.Module, spec: ModelSpec) -> Iterator[Laps]:
    """Time the calls of `model`. Enter it inside the contestant's context, so that its own cost is timed too."""
    laps = Laps(Clock(next(model.parameters()).device))
    worked: list[bool] = []
    began: list[Any] = []

    def before(*_: Any) -> None:
        worked.clear()
        began[:] = [laps.clock.now()]

    def after(*_: Any) -> None:
        laps.calls.append((began[0], laps.clock.now(), bool(worked)))

    hooks = [
        layer_of_the_last_unit(model, spec).register_forward_hook(lambda *_: worked.append(True)),
        model.register_forward_pre_hook(before, prepend=True),
        model.register_forward_hook(after),
    ]
    try:
        yield laps
    finally:
        for hook in hooks:
            hook.remove()


def layer_of_the_last_unit(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Return a linear layer within the last unit; it runs if and only if the unit is computed."""
    for unit in reversed(spec.units(model)):
        own = set(unit.modules.values())
        for module in unit.modules.values():
            for child in module.modules():
                if isinstance(child, nn.Linear) and child not in own:
                    return child
    raise ValueError(f"no unit of {type(model).__name__} has a linear layer inside: full steps cannot be recognised")
