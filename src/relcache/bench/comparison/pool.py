"""Run the work in this process, or in many through Ray, on this machine or a cluster.

Pieces of work share only files, so all machines must see the output folder.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from relcache.bench.comparison.work import Setup, Work, Worker

ATTEMPTS = 3  # at a piece of work, if its worker dies


class Pool(AbstractContextManager["Pool"], Protocol):
    """Does pieces of work that do not depend on each other."""

    def do(self, pieces: Sequence[Work], advance: Callable[[Work], None], tell: Callable[[str], None]) -> None:
        """Do `pieces` in any order; call `advance` with each finished piece, and `tell` with news."""


class Here(Pool):
    """Run the work in this process, one piece after the other."""

    def __init__(self, setup: Setup) -> None:
        self._threads = torch.get_num_threads()
        self._worker = Worker(setup)

    def do(self, pieces: Sequence[Work], advance: Callable[[Work], None], tell: Callable[[str], None]) -> None:
        for piece in pieces:
            self._worker.do(piece, tell)
            advance(piece)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._threads)


class Cluster(Pool):
    """Run the work in Ray's actors. A new worker replaces a dead one, and repeats its piece.

    Args:
        setup: the settings of each worker.
        workers: a number of workers on this machine, or the address of a cluster ("ray://…", "auto"). A cluster has a
            worker for each GPU, or for each core if it has no GPU.

    Raises:
        ValueError: Ray is missing.
    """

    def __init__(self, setup: Setup, workers: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise ValueError("more than one worker needs Ray: pip install 'relcache[ray]'") from error
        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            here = is_here(workers)
            where: dict[str, Any] = {"address": workers}
            if here:  # a cluster of its own
                where = {"address": "local", "num_cpus": max(int(workers), os.cpu_count() or 1)}
            ray.init(log_to_driver=False, include_dashboard=False if here else None, configure_logging=False, **where)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        number = int(workers) if is_here(workers) else gpus or int(ray.cluster_resources()["CPU"])
        self._setup = setup
        self._kind = ray.remote(num_cpus=1, num_gpus=1 / -(-number // gpus) if gpus else 0)(Worker)
        self._actors = [self._kind.remote(setup) for _ in range(number)]

    def processes(self) -> list[int]:
        """Return the process numbers of the workers."""
        return self._ray.get([actor.process.remote() for actor in self._actors])

    def do(self, pieces: Sequence[Work], advance: Callable[[Work], None], tell: Callable[[str], None]) -> None:
        ray = self._ray
        waiting = deque((piece, ATTEMPTS) for piece in pieces)
        idle = deque(self._actors)
        busy: dict[Any, tuple[Any, Work, int]] = {}
        while waiting or busy:
            while waiting and idle:
                actor = idle.popleft()
                piece, attempts = waiting.popleft()
                busy[actor.do.remote(piece)] = (actor, piece, attempts)
            finished, _ = ray.wait(list(busy), num_returns=1)
            actor, piece, attempts = busy.pop(finished[0])
            try:
                ray.get(finished[0])
            except ray.exceptions.RayActorError as error:
                if attempts == 1:
                    raise ValueError(f"{ATTEMPTS} workers died over {piece.file}: {error}") from error
                tell(f"a worker died over {piece.file.name}; it runs again")
                waiting.appendleft((piece, attempts - 1))
                index = self._actors.index(actor)
                self._actors[index] = self._kind.remote(self._setup)
                idle.append(self._actors[index])
                continue
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            idle.append(actor)
            advance(piece)

    def __exit__(self, *error: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._owns_ray:
            self._ray.shutdown()


def is_here(workers: str) -> bool:
    """Whether `--workers` is a number of processes on this machine."""
    return workers.isascii() and workers.isdigit()


def make_pool(setup: Setup, workers: str = "1") -> Pool:
    """Return the pool that `--workers` names: a number, or the address of a Ray cluster.

    Raises:
        ValueError: neither a number above 0 nor an address, or Ray is needed and missing.
    """
    if workers == "1":
        return Here(setup)
    if workers != "auto" and not workers.startswith("ray://") and not (is_here(workers) and int(workers)):
        raise ValueError(f"--workers takes a number, ray://HOST:PORT or auto, got {workers!r}")
    return Cluster(setup, workers)
