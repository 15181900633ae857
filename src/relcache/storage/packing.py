"""Pack features into fewer bytes, and unpack them. Knows nothing of caches."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

CacheDtype = Literal["features", "bfloat16", "float8", "int8"]
MOST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}  # greatest numbers of the types that need a scale
TYPES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn, "int8": torch.int8}


class Packed(NamedTuple):
    """Packed features: `values` (…, channels), the float32 `scale` (…, 1) of each token, and the original dtype."""

    values: Tensor
    scale: Tensor | None
    dtype: torch.dtype


def pack(value: Tensor, dtype: CacheDtype) -> Tensor | Packed:
    """Return floating-point features (…, channels) packed into `dtype`, or unchanged if that saves nothing."""
    if dtype == "features" or value.element_size() <= TYPES[dtype].itemsize:
        return value
    into = TYPES[dtype]
    if into not in MOST:
        return Packed(value.to(into), None, value.dtype)
    scale = value.abs().amax(-1, keepdim=True).float() / MOST[into]
    scaled = value / torch.where(scale == 0, 1.0, scale)
    return Packed((scaled.round_() if into == torch.int8 else scaled).to(into), scale, value.dtype)


def unpack(packed: Packed) -> Tensor:
    """Return the features in their original shape and dtype, up to rounding.

    For int8 the error is at most 1/254 of a token's greatest value.
    """
    values = packed.values.to(packed.dtype if packed.scale is None else torch.float32)
    return values if packed.scale is None else values.mul_(packed.scale).to(packed.dtype)


def unpacked(state: Any) -> Any:
    """Return `state`, a tree of tuples, lists and dictionaries, with its packed features unpacked."""
    return tree_map(
        lambda leaf: unpack(leaf) if isinstance(leaf, Packed) else leaf, state,
        is_leaf=lambda node: isinstance(node, Packed),
    )  # fmt: skip
