"""Make endless requests on two small models, and test that no memory piles up.

    python benchmarks/soak.py --requests 500

Size, batch, number of steps, guidance branches, method, granularity, packed type and memory limit of a request are
random. Some requests end with an error or an interrupt, between two calls or inside a module. Between requests the
features are sometimes freed, the handle reset or disabled, or its report printed. On one model caching is enabled anew
every few requests. On the other it stays on, with a memory limit, from the first to the last. The bytes of live tensors
and the memory of the process are measured every `--every` requests, each time after the same request.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import os
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiTTransformer2DModel

import relcache
from relcache.bench.sampling.scale import live_bytes

WARMUP = 50
SIZES, ROWS, BRANCHES, BLOCKS = (8, 12, 16), (1, 2, 3), (1, 2), 3
METHODS = (
    "fora:interval=3", "taylorseer:order=2,interval=3", "newton:order=1,interval=4", "rfe:order=1,interval=3",
    "rcs:order=1,threshold=0.3", "rfc:order=2,threshold=0.3",
)  # fmt: skip
WAYS = (
    {"granularity": "module"}, {"granularity": "block"}, {"granularity": "stack"}, {"cache_dtype": "int8"},
    {"granularity": "stack", "cache_dtype": "float8"}, {"memory_limit": "100 kB"}, {"memory_limit": "20 kB"},
    {"memory_limit": 3000}, {"offload": "cpu", "cache_dtype": "bfloat16"},
)  # fmt: skip


class BrokenOff(Exception):
    """Raised in the middle of a request."""


class Snapshot(NamedTuple):
    """The bytes of live tensors and of the process after a number of requests."""

    requests: int
    tensors: int
    process: int


def small_model() -> DiTTransformer2DModel:
    """Return a few blocks of random weights."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=BLOCKS, sample_size=16,
        patch_size=2,
    ).eval()  # fmt: skip


@torch.no_grad()
def request(
    model: DiTTransformer2DModel, steps: int, size: int, rows: int, branches: int, break_at: int | None = None
) -> None:
    """Make one loop of calls; raise an error before step `break_at`."""
    labels = [torch.full((rows,), branch) for branch in range(branches)]
    sample, timesteps = torch.randn(rows, 4, size, size), torch.linspace(999, 0, steps).long()
    for step in range(steps):
        if step == break_at:
            raise random.choice((BrokenOff, KeyboardInterrupt))
        noise = [model(sample, timestep=timesteps[step].expand(rows), class_labels=label).sample for label in labels]
        sample = sample - 0.05 * noise[0]


def stumble(model: DiTTransformer2DModel, calls: int) -> Any:
    """Make a module raise an error at its call number `calls`; return the hook's handle."""
    count = itertools.count(1)

    def hook(*_: Any) -> None:
        if next(count) == calls:
            raise random.choice((BrokenOff, KeyboardInterrupt))

    layer = random.choice(model.transformer_blocks)
    return random.choice((layer.ff.net[0], layer.attn1.to_q)).register_forward_pre_hook(hook)


def one_of_many(
    model: DiTTransformer2DModel, handle: relcache.Handle | None, lasts: bool = False
) -> relcache.Handle | None:
    """Make a random request and a random change of the handle; a handle that `lasts` stays enabled."""
    if handle is None or (not lasts and random.random() < 0.3):
        method = relcache.method_from_text(random.choice(METHODS))
        handle = relcache.enable(model, method, **random.choice(WAYS))
    hook = stumble(model, random.randint(1, 4)) if random.random() < 0.15 else None
    steps = random.randint(2, 9)
    break_at = random.randrange(steps) if random.random() < 0.15 else None
    try:
        request(model, steps, random.choice(SIZES), random.choice(ROWS), random.choice(BRANCHES), break_at)
    except (BrokenOff, KeyboardInterrupt):
        pass
    except ValueError as error:
        if "nothing keeps the cache within memory_limit" not in str(error):
            raise
    finally:
        if hook is not None:
            hook.remove()
    chance = random.random()
    if chance < 0.1:
        handle.free()
    elif chance < 0.2:
        handle.reset()
    elif chance < 0.3:
        str(handle.report())
    elif chance < 0.4 and not lasts:
        handle.disable()
        return None
    return handle


def snapshots(requests: int, interval: int, seed: int = 0) -> Iterator[Snapshot]:
    """Make requests, and measure the memory every `interval` of them, each time after the same request."""
    random.seed(seed)
    model, lasting, handle = small_model(), small_model(), None
    always = relcache.enable(lasting, relcache.RFC(2, threshold=0.3), memory_limit="60 kB")
    for size, rows, branches in itertools.product(SIZES, ROWS, BRANCHES):
        request(lasting, 3, size, rows, branches)
    for number in range(1, requests + 1):
        if random.random() < 0.3:
            one_of_many(lasting, always, lasts=True)
        else:
            handle = one_of_many(model, handle)
        if number % interval == 0:
            handle = relcache.enable(model, relcache.RFC(2, threshold=0.3))
            for used in (model, lasting):
                request(used, 4, 8, 2, 2)
            assert always.enabled
            yield Snapshot(number, live_bytes(), process_bytes())


def process_bytes() -> int:
    """Return this process's memory in RAM after free memory has gone back to the system; 0 if it is unknown."""
    gc.collect()
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--every", type=int, default=WARMUP)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for one in snapshots(options.requests, options.every, options.seed):
        found.append(one)
        print(f"{one.requests:6} requests  {one.tensors:12,} bytes of tensors  {one.process / 1e6:8.1f} MB of process")
    first, last = found[0], found[-1]
    print(f"from {first.requests} to {last.requests}: {last.tensors - first.tensors:+,} bytes of tensors, "
          f"{(last.process - first.process) / 1e6:+.1f} MB of process")  # fmt: skip
    return int(last.tensors != first.tensors)


if __name__ == "__main__":
    sys.exit(main())
