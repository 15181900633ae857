"""Count the bytes, FLOPs and kernels of full and cached steps without computing them.

The models are `subjects.SUBJECTS` at full size, on the meta device without weights. `python_cost` measures Python's
part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from relcache.bench.sampling.pipelines import precision_of
from relcache.bench.speed.python_cost import python_cost
from relcache.bench.speed.subjects import Subject, class_of
from relcache.memory.estimate import fill
from relcache.method import Method
from relcache.models import SPECS
from relcache.models.coarse import coarsened
from relcache.shapes.meta import without_values

COLUMNS = (
    ("method", "method", ""),
    ("held, GB", "held_gb", ".3f"),
    ("full step, GB", "full_gb", ".1f"),
    ("GFLOPs", "full_gflops", ".0f"),
    ("kernels", "full_kernels", ".0f"),
    ("cached step, GB", "cached_gb", ".2f"),
    ("its GFLOPs", "cached_gflops", ".1f"),
    ("its kernels", "cached_kernels", ".0f"),
    ("least, ms on an H100", "h100_ms", ".2f"),
    ("least, ms here", "here_ms", ".1f"),
    ("Python calls of a unit", "unit_calls", ".1f"),
    ("its µs, launches too", "unit_us", ".1f"),
)
"""Columns of the table: heading, key in a row, format."""
H100 = 3.0e12  # bytes per second that a copy reads and writes


class Traffic(TorchDispatchMode):
    """Count kernels and the bytes that they read and write: all input and output tensors, except of views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not is_view and outputs and func.overloadpacket is not torch.ops.aten.empty:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.kernels += 1
            self.bytes += sum(value.numel() * value.element_size() for value in (*read, *outputs))
        return output


def count(subject: Subject, method: Method, dtype: torch.dtype) -> dict[str, float]:
    """Count bytes, kernels and FLOPs of a full step and of a cached one, and the bytes of the cache."""
    with torch.device("meta"):
        model = class_of(subject)(**subject.config).to(dtype).eval()
    spec = next(spec for spec in SPECS if spec.class_name == subject.class_name)
    units = coarsened(spec, model, method.granularity)
    inputs = spec.example(model, subject.size)

    def counted(model: nn.Module, plain: nn.Module, inputs: dict[str, Any]) -> dict[str, float]:
        filled = fill(model, units, method.forecaster, method.schedule, inputs, 1, method.cache_dtype)
        steps = {"full": _measure_call(lambda: plain(**inputs)), "cached": _measure_call(filled.call)}
        return {"held_bytes": filled.cache_bytes} | {
            f"{kind}_{name}": value for kind, values in steps.items() for name, value in values.items()
        }

    return without_values(lambda copied: counted(copied(model), copied(model), copied(inputs)))


def _measure_call(call: Callable[[], Any]) -> dict[str, float]:
    with FlopCounterMode(display=False) as flops:
        call()
    with Traffic() as traffic:
        call()
    return {"bytes": traffic.bytes, "kernels": traffic.kernels, "flops": flops.get_total_flops()}


def copy_rate(device: str, size: int = 1 << 28, rounds: int = 7) -> float:
    """Return the bytes per second that a copy reads and writes on this device, the best of some rounds."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        target.copy_(source)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def table(subject: Subject, methods: Sequence[tuple[str, Method]], dtype: str, device: str) -> list[dict[str, Any]]:
    """Return a row for each method with the results of `count` and `python_cost`.

    Each row also has the least time to move a cached step's bytes, at an H100's copy rate and at that of `device`.
    """
    rows, rate = [], copy_rate(device)
    for title, method in methods:
        counts, python = count(subject, method, precision_of(dtype)), python_cost(subject, method)
        rows.append(
            {
                "method": title,
                "held_gb": counts["held_bytes"] / 1e9,
                **{
                    f"{kind}_{unit}": counts[f"{kind}_{name}"] / scale
                    for kind in ("full", "cached")
                    for unit, name, scale in (("gb", "bytes", 1e9), ("gflops", "flops", 1e9), ("kernels", "kernels", 1))
                },
                "h100_ms": 1e3 * counts["cached_bytes"] / H100,
                "here_ms": 1e3 * counts["cached_bytes"] / rate,
                "units": python["units"],
                "step_calls": python["calls"],
                "unit_calls": python["calls"] / python["units"],
                "step_us": python["microseconds"],
                "unit_us": python["microseconds"] / python["units"],
            }
        )
    return rows
