"""Floating point operations of a forward, counted on the meta device from shapes: 2 per multiply-add.

Knows nothing of caching. No weight is read and nothing is computed, so a model of any size is counted in moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from relcache.meta import without_values


class Flops(NamedTuple):
    """FLOPs of one forward, and those of the named modules within it."""

    total: int
    modules: dict[str, int]


class _Attention(TorchFunctionMode):
    """Counts attention as its two matrix products, or not at all, whatever kernel would compute it."""

    def __init__(self, count: bool):
        super().__init__()
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        if not self._count:
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        groups = query.shape[-3] // key.shape[-3]
        if groups > 1:  # grouped queries
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        return (query @ key.transpose(-1, -2)) @ value


def count_modules(model: nn.Module, names: Sequence[str], args: Any, kwargs: Any, attention: bool = True) -> Flops:
    """FLOPs of `model(*args, **kwargs)` and of its modules `names`, attention products counted if `attention`.

    Model and arguments are copies without values (`without_values`).
    """
    with FlopCounterMode(display=False) as counter, _Attention(attention):
        model(*args, **kwargs)
    counts = counter.get_flop_counts()

    def of(key: str) -> int:
        return sum(counts.get(key, {}).values())

    root = type(model).__name__
    return Flops(of("Global"), {name: of(f"{root}.{name}") for name in names})


def count_flops(model: nn.Module, *args: Any, attention: bool = True, **kwargs: Any) -> int:
    """FLOPs of `model(*args, **kwargs)`, 2 per multiply-add, without computing it.

    The model and its inputs may lie on any device, the meta device included; all are counted on the meta device. Linear
    layers, convolutions and matrix products count, and attention products unless `attention` is false; elementwise
    work does not.
    """

    def count(copied: Callable[[Any], Any]) -> Flops:
        given, named = copied((args, kwargs))
        return count_modules(copied(model), (), given, named, attention)

    return without_values(count).total
