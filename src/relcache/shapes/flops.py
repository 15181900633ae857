"""Count the floating point operations of a forward pass from shapes: 2 per multiply-add.

Knows nothing of caching. No weight is read and nothing is computed, so counting is quick for a model of any size.
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

from relcache.shapes.meta import without_values


class Flops(NamedTuple):
    """FLOPs of a forward pass and of named modules; `products` and `module_products` are those of attention alone."""

    total: int
    modules: dict[str, int]
    products: int
    module_products: dict[str, int]


_WITHOUT_PRODUCTS = {F.layer_norm, F.rms_norm, F.gelu}  # results have the shape of the input


class _Products(TorchFunctionMode):
    """Counts attention and linear layers instead of running them.

    Attention counts as two matrix products, with any kernel. Linear layers and functions without products are not run
    because torch's own counter and meta kernels take up to a millisecond for each.
    """

    def __init__(self, tracker: ModuleTracker):
        super().__init__()
        self._tracker = tracker
        self.attention: Counter[str] = Counter()
        self.linear: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) > 1 and args[1].ndim == 2 and args[0].shape[-1:] == args[1].shape[1:]:
            features, weight = args[:2]
            self.linear.update(dict.fromkeys(self._tracker.parents, 2 * features.numel() * weight.shape[0]))
            return weight.new_empty(*features.shape[:-1], weight.shape[0], dtype=features.dtype)
        if func in _WITHOUT_PRODUCTS and args and args[0].is_meta:
            return args[0].new_empty(args[0].shape)
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        rows = query.shape[:-1].numel()
        count = 2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self.attention.update(dict.fromkeys(self._tracker.parents, count))
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def count_modules(model: nn.Module, names: Sequence[str], args: Any, kwargs: Any) -> Flops:
    """Return the FLOPs of `model(*args, **kwargs)` and of its modules `names`, for copies without values."""
    with ModuleTracker() as tracker, FlopCounterMode(display=False) as counter, _Products(tracker) as counted:
        model(*args, **kwargs)
    counts, products = counter.get_flop_counts(), counted.attention

    def flops_of(key: str) -> int:
        return sum(counts.get(key, {}).values()) + counted.linear[key] + products[key]

    paths = {name: f"{type(model).__name__}.{name}" for name in names}
    return Flops(
        flops_of("Global"),
        {name: flops_of(path) for name, path in paths.items()},
        products["Global"],
        {name: products[path] for name, path in paths.items()},
    )


def count_flops(model: nn.Module, *args: Any, attention: bool = True, **kwargs: Any) -> int:
    """Return the FLOPs of `model(*args, **kwargs)`, 2 per multiply-add, without computing it.

    The model and its inputs, of any shape and dtype, may be on any device, including meta. Linear layers, convolutions
    and matrix products count, and attention products unless `attention` is false. Elementwise work does not count.
    """

    def count(copied: Callable[[Any], Any]) -> Flops:
        return count_modules(copied(model), (), *copied((args, kwargs)))

    counted = without_values(count)
    return counted.total if attention else counted.total - counted.products
