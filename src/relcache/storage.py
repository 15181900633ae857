"""How features are held between steps: as they are, or packed into fewer bytes. Knows nothing of what holds them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

CacheDtype = Literal["features", "bfloat16", "float8", "int8"]
MOST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # greatest number of a type that needs a scale
TYPES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn, "int8": torch.int8}


class Packed(NamedTuple):
    """Features in fewer bytes: `values`, for each token what they are multiplied by, and the dtype that they had."""

    values: Tensor
    scale: Tensor | None
    dtype: torch.dtype


def pack(state: Any, dtype: CacheDtype, widths: Collection[int]) -> Any:
    """`state`, a tree of tuples, lists and dictionaries, with its features packed: floating-point tensors whose last
    dimension, the channels, is one of `widths`."""
    if dtype == "features":
        return state

    def packed(value: Tensor) -> Any:
        if value.ndim < 2 or value.shape[-1] not in widths or not value.is_floating_point():
            return value
        into = TYPES[dtype]
        return value if value.element_size() <= into.itemsize else _pack(value, into)

    return tree_map_only(Tensor, packed, state)


def unpack(state: Any, dtype: CacheDtype) -> Any:
    """The inverse of `pack`, up to rounding: half a step of 1/127 of a token's greatest value for int8."""
    if dtype == "features":
        return state
    return tree_map(
        lambda leaf: _unpack(leaf) if isinstance(leaf, Packed) else leaf, state,
        is_leaf=lambda node: isinstance(node, Packed),
    )  # fmt: skip


def tensors(state: Any) -> list[Tensor]:
    """The tensors that a state keeps alive."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def _pack(value: Tensor, into: torch.dtype) -> Packed:
    if into not in MOST:
        return Packed(value.to(into), None, value.dtype)
    scale = value.abs().amax(-1, keepdim=True).float() / MOST[into]
    scaled = value / torch.where(scale == 0, 1.0, scale)
    return Packed((scaled.round_() if into == torch.int8 else scaled).to(into), scale, value.dtype)


def _unpack(packed: Packed) -> Tensor:
    values = packed.values.to(packed.dtype if packed.scale is None else torch.float32)
    return values if packed.scale is None else values.mul_(packed.scale).to(packed.dtype)
