"""Floating point operations of a forward, counted on the meta device from shapes: 2 per multiply-add.

Knows nothing of caching. No weight is read and nothing is computed, so a model of any size is counted in moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


class Flops(NamedTuple):
    """FLOPs of one forward, and those of the named modules within it."""

    total: int
    modules: dict[str, int]


def to_meta(value: Any) -> Any:
    """`value` with every tensor in it replaced by one of the same shape and dtype on the meta device."""
    return tree_map_only(Tensor, lambda tensor: torch.empty_like(tensor, device="meta"), value)


def meta_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of `model` on the meta device, by name."""
    return {name: to_meta(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}


class _NoAttention(TorchFunctionMode):
    """Leaves out attention products: on the meta device they would be counted as plain matrix products."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, _, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def count_modules(
    model: nn.Module, names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any], attention: bool = True
) -> Flops:
    """FLOPs of `model(*args, **kwargs)` and of its modules `names`, attention products counted if `attention`."""
    weights = meta_weights(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, nullcontext() if attention else _NoAttention():
        functional_call(model, weights, to_meta(tuple(args)), to_meta(kwargs))
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
    return count_modules(model, (), args, kwargs, attention).total
