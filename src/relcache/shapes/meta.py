"""Shape-only forward passes of copies of models and arguments, with tensors without values.

Knows nothing of caching. No weight is read, and the original model does not change, even if it caches tables.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import flex_attention as flex
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

Result = TypeVar("Result")
SMALL = 4096  # most entries of a float tensor that may steer a forward pass by its values: times, positions
LARGE = 2**20  # the same for integers: masks, lengths, token numbers
OTHERS = ("forward", "_old_forward", "_hf_hook", "_diffusers_hook")  # attributes of modules from other libraries
SHARING = "_parallel_config"  # attribute of diffusers' models and attention processors: the processes that share them
GATHERED = "FSDPModule"  # base class of modules whose weights torch's fully_shard divides; it forbids copies
STATE_OF_GATHERED = "__composable_api_state_key"  # their attributes for it, which hold process groups


def without_values(work: Callable[[Callable[[Any], Any]], Result]) -> Result:
    """Return `work(copied)`, which runs `copied(model)` on `copied(arguments)`.

    The copies are on the meta device. If the forward pass reads masks or lengths, or needs a real device, it fails.
    Then `work` runs again with fake weights and features but real arguments, about ten times slower.

    Raises:
        Exception: that of the second run.
    """
    with _shapes_only():
        try:
            return work(on_meta)
        except Exception:
            with _Values(fake := _Fake()):
                return work(fake)


def on_meta(value: Any) -> Any:
    """Return a deep copy of `value`, a model or its arguments, with all tensors on the meta device.

    A model's copy runs the forwards of its classes, without replaced forwards and without hooks.
    """
    return _copied(value, _empty)


def sketch(value: Any) -> Any:
    """Return a deep copy of arguments for a later `without_values`; small and integer tensors keep their values."""
    return _copied(value, lambda tensor: tensor.detach().clone() if _may_steer(tensor) else _empty(tensor))


class _Fake:
    """Copies models with fake weights, and arguments as real tensors on the CPU."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def __call__(self, value: Any) -> Any:
        return _copied(value, self.weight if isinstance(value, nn.Module) else self._argument)

    def weight(self, tensor: Tensor) -> Tensor:
        with self._mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    def _argument(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return tensor.clone().cpu() if tensor.is_inference() else tensor.detach().cpu()


def _may_steer(tensor: Tensor) -> bool:
    most = SMALL if tensor.is_floating_point() or tensor.is_complex() else LARGE
    return tensor.numel() <= most


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _copied(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, nn.Module):
        return _copied_model(value, replace)

    def copied(leaf: Any) -> Any:
        is_shared = isinstance(leaf, nn.Module) or hasattr(leaf, "__self__")  # a method may belong to a whole model
        return leaf if is_shared else copy.deepcopy(leaf, memo)

    memo: dict[int, Any] = {}
    with _Replacing(replace):
        return tree_map(copied, value)


def _copied_model(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Any] = {}
    gathered = [module for module in model.modules() if _is_gathered(module)]
    for parameter in model.parameters():
        weight: Any = parameter.detach()
        if hasattr(weight, "to_local") and not gathered:
            weight = weight.to_local()  # of tensor parallelism, where a process computes with its part
        memo[id(parameter)] = nn.Parameter(replace(weight), requires_grad=False)
    for module in model.modules():
        memo.update({id(module.__dict__[name]): name for name in OTHERS if name in module.__dict__})
        memo.update({id(entry): OrderedDict() for name, entry in module.__dict__.items() if "_hooks" in name})
        for holder in (module, getattr(module, "processor", None)):
            memo[id(getattr(holder, SHARING, None))] = None
    for module in gathered:
        kinds = iter(type(module).__mro__)
        next(kind for kind in kinds if kind.__name__ == GATHERED)
        memo[id(module)] = object.__new__(next(kinds))  # of the class that fully_shard replaced
    with _Replacing(replace):
        for module in gathered:
            state = {name: entry for name, entry in module.__dict__.items() if not name.startswith(STATE_OF_GATHERED)}
            memo[id(module)].__dict__.update(copy.deepcopy(state, memo))
        result = copy.deepcopy(model, memo)
    for module in result.modules():
        for name in OTHERS:
            module.__dict__.pop(name, None)
    return result


def _is_gathered(module: nn.Module) -> bool:
    return any(kind.__name__ == GATHERED for kind in type(module).__mro__)


class _Replacing(TorchFunctionMode):
    """Makes `copy.deepcopy` replace tensors."""

    def __init__(self, replace: Callable[[Tensor], Tensor]):
        super().__init__()
        self._replace = replace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return self._replace(args[0])
        return func(*args, **(kwargs or {}))


class _Values(TorchFunctionMode):
    """Mixes real and fake tensors: masks and lengths keep values, tensors of the features' size stay fake."""

    def __init__(self, fake: _Fake):
        super().__init__()
        self._fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            mask = torch.ones(args[1].shape, dtype=torch.bool) if isinstance(args[1], FakeTensor) else args[1]
            args = (args[0], mask.nonzero(as_tuple=True))
        elif func in (Tensor.repeat, Tensor.expand) and type(args[0]) is Tensor and not args[0].is_meta:
            sizes = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            if math.prod(max(int(size), 1) for size in sizes) > SMALL:  # a mask of all pairs of tokens
                args = (self._fake.weight(args[0]), *args[1:])
        elif func is Tensor.bincount and isinstance(args[0], FakeTensor):
            return torch.tensor([args[0].numel()])  # the work is the same for each expert
        return func(*args, **(kwargs or {}))


@contextmanager
def _shapes_only() -> Iterator[None]:
    """Turn off gradients and inference mode, and count block-sparse attention as dense."""

    def dense(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    original = flex.flex_attention
    with torch.inference_mode(False), torch.no_grad():
        setattr(flex, "flex_attention", dense)  # noqa: B010 -- an overloaded function, to a type checker
        try:
            yield
        finally:
            flex.flex_attention = original
