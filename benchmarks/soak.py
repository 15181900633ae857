"""Requests without end on two small models: what is alive after the last is what was alive after the first few.

    python benchmarks/soak.py --requests 500

Each request has a size, a batch, a number of steps, one guidance branch or two, and a method of its own, at some
granularity, packed or not, with or without a memory limit; some end with an error or an interrupt between two calls or
inside a module; now and then the features are freed, the record is forgotten, caching is switched off, or the report is
asked for. On one of the models caching is switched on anew every few requests; on the other it stays on, with a memory
limit, from the first to the last. Bytes of live tensors and the memory of the process are looked at every so many
requests, after a request of always the same kind.
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
from relcache.bench.speed.scale import live_bytes

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


class Look(NamedTuple):
    """What was alive after so many requests."""

    requests: int
    tensors: int
    process: int


def small_model() -> DiTTransformer2DModel:
    """A few blocks of random weights."""
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=BLOCKS, sample_size=16,
        patch_size=2,
    ).eval()  # fmt: skip


@torch.no_grad()
def request(
    model: DiTTransformer2DModel, steps: int, size: int, rows: int, branches: int, break_at: int | None = None
) -> None:
    """One loop of calls; an error is raised before step `break_at`."""
    labels = [torch.full((rows,), branch) for branch in range(branches)]
    sample, timesteps = torch.randn(rows, 4, size, size), torch.linspace(999, 0, steps).long()
    for step in range(steps):
        if step == break_at:
            raise random.choice((BrokenOff, KeyboardInterrupt))
        noise = [model(sample, timestep=timesteps[step].expand(rows), class_labels=label).sample for label in labels]
        sample = sample - 0.05 * noise[0]


def stumble(model: DiTTransformer2DModel, calls: int) -> Any:
    """Raise an error within a module, at its call of this number."""
    seen: list[None] = []

    def hook(*_: Any) -> None:
        seen.append(None)
        if len(seen) == calls:
            raise random.choice((BrokenOff, KeyboardInterrupt))

    layer = random.choice(model.transformer_blocks)
    return random.choice((layer.ff.net[0], layer.attn1.to_q)).register_forward_pre_hook(hook)


def one_of_many(
    model: DiTTransformer2DModel, handle: relcache.Handle | None, lasts: bool = False
) -> relcache.Handle | None:
    """A request of some kind, and what may be done around it; a handle that `lasts` stays."""
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


def looks(requests: int, every: int, seed: int = 0) -> Iterator[Look]:
    """Make requests, and look at what is alive every so many of them, each time after the same request."""
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
        if number % every == 0:
            handle = relcache.enable(model, relcache.RFC(2, threshold=0.3))
            for used in (model, lasting):
                request(used, 4, 8, 2, 2)
            assert always.enabled
            yield Look(number, live_bytes(), process_bytes())


def process_bytes() -> int:
    """Memory of this process that lies in RAM, after what is free has been given back; 0 where that is not known."""
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
    for look in looks(options.requests, options.every, options.seed):
        found.append(look)
        print(
            f"{look.requests:6} requests  {look.tensors:12,} bytes of tensors  {look.process / 1e6:8.1f} MB of process"
        )
    first, last = found[0], found[-1]
    print(f"from {first.requests} to {last.requests}: {last.tensors - first.tensors:+,} bytes of tensors, "
          f"{(last.process - first.process) / 1e6:+.1f} MB of process")  # fmt: skip
    return int(last.tensors != first.tensors)


if __name__ == "__main__":
    sys.exit(main())
