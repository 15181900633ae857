"""Copies between a device and the host's memory, beside the work of the device. Knows nothing of features or units.

On an accelerator the copies run on two streams of their own, one for each way, to and from pinned memory, and the host
waits for none of them: a stream waits for an event of another. All memory on the device belongs to the stream that
does the work. Memory that is about to be filled is filled after whatever the work had been told before; memory that is
being read is let go of after the work has been told to wait for the reading. So none is used again too early, whenever
its last tensor dies, and none lies idle because the host is ahead of the device.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Offload = Literal["none", "cpu"]
SHARED_MEMORY = frozenset({"cpu", "meta", "mps"})  # devices whose memory is the host's, or none


class Copy(NamedTuple):
    """A copy under way: where it goes, what marks its end, and the stream of work that it was started beside."""

    target: Tensor
    done: Any = None
    work: Any = None


class Mover:
    """Copies at once, without streams: for devices that have none, and for shapes without values."""

    def moves(self, device: torch.device) -> bool:
        """Whether what lies on `device` has another place to go."""
        return True

    def leave(self, source: Tensor) -> Copy:
        """Begin to copy `source` to the host; it must stay alive and unchanged until `release`."""
        return Copy(torch.empty_like(source).copy_(source))

    def release(self, copy: Copy) -> None:
        """Let the work go on after the copy to the host: then its source may be dropped."""

    def bring(self, host: Tensor, device: torch.device, after: Copy) -> Copy:
        """Begin to copy `host`, which `after` filled, to `device`."""
        return Copy(torch.empty_like(host).copy_(host))

    def arrive(self, copy: Copy) -> Tensor:
        """What `bring` brought; the work waits for it."""
        return copy.target


class StreamMover(Mover):
    """Copies on streams of an accelerator beside its work: of CUDA, or of any device whose module in torch has them."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, tuple[Any, Any]] = {}

    def moves(self, device: torch.device) -> bool:
        return device.type not in SHARED_MEMORY

    def leave(self, source: Tensor) -> Copy:
        module = torch.get_device_module(source.device)
        work, (away, _) = module.current_stream(source.device), self._pair(module, source.device)
        host = torch.empty_like(source, device="cpu", pin_memory=True)
        away.wait_stream(work)
        with module.stream(away):
            host.copy_(source, non_blocking=True)
        return Copy(host, away.record_event(), work)

    def release(self, copy: Copy) -> None:
        copy.work.wait_event(copy.done)

    def bring(self, host: Tensor, device: torch.device, after: Copy) -> Copy:
        module = torch.get_device_module(device)
        work, (_, back) = module.current_stream(device), self._pair(module, device)
        target = torch.empty_like(host, device=device)
        back.wait_stream(work)  # the memory of `target` may be in use by what the work was told before
        back.wait_event(after.done)
        with module.stream(back):
            target.copy_(host, non_blocking=True)
        return Copy(target, back.record_event(), work)

    def arrive(self, copy: Copy) -> Tensor:
        copy.work.wait_event(copy.done)  # whose memory it is, whether it is used there or not
        present = torch.get_device_module(copy.target.device).current_stream(copy.target.device)
        if present != copy.work:
            present.wait_event(copy.done)
            copy.target.record_stream(present)
        return copy.target

    def _pair(self, module: Any, device: torch.device) -> tuple[Any, Any]:
        """The streams of `device` for copies to the host and from it."""
        if device not in self._streams:
            self._streams[device] = (module.Stream(device), module.Stream(device))
        return self._streams[device]
