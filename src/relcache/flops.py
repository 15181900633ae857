"""Floating point operations of a forward, counted on the meta device from shapes: 2 per multiply-add.

Knows nothing of caching. No weight is read and nothing is computed, so a model of any size is counted in moments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from relcache.meta import without_values


class Flops(NamedTuple):
    """FLOPs of one forward and of the named modules within it; `products` and `module_products` are attention's."""

    total: int
    modules: dict[str, int]
    products: int
    module_products: dict[str, int]


class _Attention(TorchFunctionMode):
    """Leaves attention out of what is computed, and counts its two matrix products, whatever kernel they would use."""

    def __init__(self, tracker: ModuleTracker):
        super().__init__()
        self._tracker = tracker
        self.products: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        rows = query.shape[:-1].numel()
        count = 2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self.products.update(dict.fromkeys(self._tracker.parents, count))
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def count_modules(model: nn.Module, names: Sequence[str], args: Any, kwargs: Any) -> Flops:
    """FLOPs of `model(*args, **kwargs)` and of its modules `names`.

    Model and arguments are copies without values (`without_values`).
    """
    with ModuleTracker() as tracker, FlopCounterMode(display=False) as counter, _Attention(tracker) as attention:
        model(*args, **kwargs)
    counts, products = counter.get_flop_counts(), attention.products

    def of(key: str) -> int:
        return sum(counts.get(key, {}).values()) + products[key]

    paths = {name: f"{type(model).__name__}.{name}" for name in names}
    return Flops(
        of("Global"),
        {name: of(path) for name, path in paths.items()},
        products["Global"],
        {name: products[path] for name, path in paths.items()},
    )


def count_flops(model: nn.Module, *args: Any, attention: bool = True, **kwargs: Any) -> int:
    """FLOPs of `model(*args, **kwargs)`, 2 per multiply-add, without computing it.

    The model and its inputs may lie on any device, the meta device included; all are counted on the meta device. Linear
    layers, convolutions and matrix products count, and attention products unless `attention` is false; elementwise
    work does not.
    """

    def count(copied: Callable[[Any], Any]) -> Flops:
        given, named = copied((args, kwargs))
        return count_modules(copied(model), (), given, named)

    counted = without_values(count)
    return counted.total if attention else counted.total - counted.products
