"""Copy between a device and the host's memory, in parallel to the device's work. Knows nothing of features or units.

On an accelerator two streams, one for each direction, copy to and from pinned memory. The host never waits: streams
wait for each other's events. All memory on the device belongs to the stream of work. A copy to the device starts after
the work queued before it. The source of a copy to the host is freed once the work has queued a wait for the copy. So
memory is never reused too early, and never idles because the host is ahead of the device.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Offload = Literal["none", "cpu"]
SHARED_MEMORY = frozenset({"cpu", "meta", "mps"})  # devices without their own memory


class Copy(NamedTuple):
    """A copy in progress: its target, its end event, and the work stream that was current at its start."""

    target: Tensor
    done: Any = None
    work: Any = None


class Mover:
    """Copies tensors of any shape and dtype immediately: on devices without streams, and of tensors without values."""

    def moves(self, device: torch.device) -> bool:
        """Return whether tensors on `device` are offloaded."""
        return True

    def leave(self, source: Tensor) -> Copy:
        """Start a copy of `source` to the host; the caller keeps `source` alive and unchanged until `release`."""
        return Copy(torch.empty_like(source).copy_(source))

    def release(self, copy: Copy) -> None:
        """Make the work wait for a copy to the host; its source may then be dropped."""

    def bring(self, host: Tensor, device: torch.device, after: Copy) -> Copy:
        """Start a copy of `host`, the target of the copy `after`, to `device`."""
        return Copy(torch.empty_like(host).copy_(host))

    def arrive(self, copy: Copy) -> Tensor:
        """Return the target of a copy from `bring`, and make the work wait for it."""
        return copy.target


class StreamMover(Mover):
    """Copies on streams of CUDA, or of any other device with streams in torch."""

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
        back.wait_stream(work)  # earlier work may still use the memory of `target`
        back.wait_event(after.done)
        with module.stream(back):
            target.copy_(host, non_blocking=True)
        return Copy(target, back.record_event(), work)

    def arrive(self, copy: Copy) -> Tensor:
        copy.work.wait_event(copy.done)  # the owner of the memory, even if another stream uses it
        present = torch.get_device_module(copy.target.device).current_stream(copy.target.device)
        if present != copy.work:
            present.wait_event(copy.done)
            copy.target.record_stream(present)
        return copy.target

    def _pair(self, module: Any, device: torch.device) -> tuple[Any, Any]:
        """Return the streams of `device` for copies to the host and back."""
        if device not in self._streams:
            self._streams[device] = (module.Stream(device), module.Stream(device))
        return self._streams[device]
