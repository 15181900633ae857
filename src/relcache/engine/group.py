"""Exchange small tensors with the processes of a group, and learn from the others that one of them has failed.

Knows torch.distributed, nothing of models, steps and caching.
"""

from __future__ import annotations

import importlib
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = 1.0  # seconds between two looks at the others' failures
MOST = 60.0  # seconds in which the others must show whether they have failed alike
KEY = "relcache/failures/{}/{}"  # group and process; its value is the number of failures, and the last one's text
BROKEN = 2**40  # the number of failures of a process that left an exchange unfinished


@dataclass
class Record:
    """The number of this process's failures, and of those after which the others were found to have failed alike."""

    failures: int = 0
    settled: int = 0


functional: Any = None  # torch's module of collectives for compiled code; imported with the first group
_records: dict[tuple[int, str], Record] = {}  # by the store and the process's key in it


class Failed(RuntimeError):
    """Another process of the group has failed, and left this one waiting."""


class Group:
    """Processes that exchange tensors.

    Args:
        group: a torch ProcessGroup, or a DeviceMesh of one dimension.

    Raises:
        TypeError: it is neither.
        ValueError: this process does not belong to it.
    """

    def __init__(self, group: Any):
        if hasattr(group, "get_group"):
            if group.ndim != 1:
                raise ValueError(
                    f"the mesh of a group has one dimension, this one has {group.ndim}: take one of them, "
                    "mesh['name'], or all together, mesh._flatten()"
                )
            group = group.get_group()
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "group= is a ProcessGroup of torch.distributed, such as torch.distributed.group.WORLD, or a "
                f"DeviceMesh; got {group!r}"
            )
        if dist.get_rank(group) < 0:
            raise ValueError("this process does not belong to the group that it was passed")
        global functional
        functional = importlib.import_module("torch.distributed._functional_collectives")
        self._group = group
        self.ranks = tuple(dist.get_process_group_ranks(group))
        self._record = _records.setdefault((id(_store()), self._key(dist.get_rank())), Record())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Group) and self._group is other._group

    def __hash__(self) -> int:
        return hash(self._group)

    def __repr__(self) -> str:
        return f"Group({', '.join(map(str, self.ranks))})"

    def gather(self, value: Tensor) -> Tensor:
        """Return the `value` of each process, (processes, …). The host does not wait for a device other than the CPU.

        All processes add up the same numbers in the same order, so that sums of the result are equal to the last bit.

        Raises:
            RuntimeError: on a CPU, another process of the group has failed.
        """
        return self._gathered(value, is_awaited=value.device.type == "cpu")

    def gather_on_host(self, value: Tensor) -> Tensor:
        """Return the `value` of each process, (processes, …), on the CPU.

        Raises:
            RuntimeError: another process of the group has failed.
        """
        return self._gathered(value, is_awaited=True).cpu()

    def _gathered(self, value: Tensor, is_awaited: bool) -> Tensor:
        own = value.flatten()
        if torch.compiler.is_compiling():
            return functional.all_gather_tensor(own, 0, self._group).view(-1, *value.shape)
        self._settle()
        together = own.new_empty(len(self.ranks) * own.numel())
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
        work = gather(together, own, group=self._group, async_op=True)
        if work is not None:
            if is_awaited:
                self._await(work)
            work.wait()
        return together.view(-1, *value.shape)

    def _await(self, work: dist.Work) -> None:
        """Wait until `work` is done, and look now and then whether another process has failed."""
        began = looked = time.monotonic()
        while not work.is_completed():
            now = time.monotonic()
            time.sleep(0 if now - began < 0.01 else 0.001)
            if now - looked > PATIENCE:
                self._check_others()
                looked = now

    # Failures. If all processes fail alike, as out of memory, none waits for another, and they may go on.

    def report(self, failure: BaseException | None) -> None:
        """Tell the other processes that a call has failed here; they stop to wait for this process."""
        if not isinstance(failure, Failed):
            self._record.failures += 1
            self._publish(repr(failure))

    def _publish(self, text: str) -> None:
        with suppress(Exception):  # the process that holds the store may have ended
            _store().set(self._key(dist.get_rank()), f"{self._record.failures}\n{text}")

    def _settle(self) -> None:
        """After a failure, wait until all others have failed alike: else one still waits in an earlier exchange.

        Raises:
            Failed: one has not failed, or an exchange was left unfinished.
        """
        if len(self.ranks) == 1:
            return
        record, end = self._record, time.monotonic() + MOST
        while record.failures > record.settled:
            if record.failures >= BROKEN:
                raise Failed(
                    f"process {dist.get_rank()} stopped waiting for another one in an earlier call, and their "
                    "exchanges no longer match: restart the processes"
                )
            counts = [(*self._failures_of(rank), rank) for rank in self.ranks if rank != dist.get_rank()]
            (most, text, broken), (least, _, behind) = max(counts), min(counts)
            if most >= BROKEN:
                self._break(broken, text)
            if least < record.failures and time.monotonic() > end:
                self._break(behind, "it has not failed alike")
            record.settled = record.failures if least >= record.failures else record.settled
            time.sleep(0.01)

    def _check_others(self) -> None:
        """Raise an error if another process has failed more often than this one."""
        for rank in self.ranks:
            count, text = self._failures_of(rank)
            if rank != dist.get_rank() and count > self._record.failures:
                self._break(rank, text)

    def _break(self, rank: int, text: str) -> None:
        """Leave the exchange with a process that has failed, for good."""
        self._record.failures = BROKEN
        self._publish(f"it stopped waiting for process {rank}")
        raise Failed(f"process {rank} shares its steps with process {dist.get_rank()}, and failed: {text}")

    def _failures_of(self, rank: int) -> tuple[int, str]:
        """Return the number of failures of a process, and the last one's text."""
        with suppress(Exception):
            if _store().check([self._key(rank)]):
                count, _, text = _store().get(self._key(rank)).decode().partition("\n")
                return int(count), text
        return 0, ""

    def _key(self, rank: int) -> str:
        return KEY.format("-".join(map(str, self.ranks)), rank)


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
