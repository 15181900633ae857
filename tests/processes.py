"""Work in several real processes that exchange tensors through gloo."""

from __future__ import annotations

import datetime
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

SECONDS = 180  # that a process waits for another


def in_processes(work: Callable[..., list[str]], folder: Path, *args: Any, count: int = 2) -> list[str]:
    """Return the problems that `work(rank, *args)` found in each process, a text for each; "" for none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (port, folder, count, work, args), nprocs=count)
    return [(folder / str(rank)).read_text() for rank in range(count)]


def _process(rank: int, port: int, folder: Path, count: int, work: Callable[..., list[str]], args: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.accelerator.device_count = lambda: count  # diffusers divides by it, and a CPU has none
    torch.accelerator.current_accelerator = lambda *args: None  # a build for CUDA names one that is not there
    timeout = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timeout, world_size=count, rank=rank)
    try:
        problems = "\n".join(work(rank, *args))
    except BaseException:
        problems = traceback.format_exc()
    (folder / str(rank)).write_text(problems)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not all((folder / str(other)).exists() for other in range(count)):
        time.sleep(0.01)  # another process may still read what this one sent
    os._exit(0)  # after a failure gloo aborts a process that ends its group
