"""The store of features between steps: packed into fewer bytes, and offloaded to the host's memory on request.

Knows nothing of forecasters, units or branches: states are trees of tuples, lists and dictionaries. The number of
channels identifies the features in a state; the rest, numbers for each sample, is stored as it is.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from relcache.storage.offload import Copy, Mover, Offload, StreamMover
from relcache.storage.packing import CacheDtype, Packed, pack, unpack

MOST_LEAVING = 2  # states that may be in transfer to the host while units are computed

Shared = dict[int, tuple["weakref.ref[Tensor]", Any]]
"""The stored form of tensors that are still alive, by their id."""


class Away:
    """An offloaded tensor: its copy in the host's memory, its device, and the copy to that device in progress."""

    def __init__(self, copy: Copy, device: torch.device):
        self.copy, self.device = copy, device
        self.coming: Copy | None = None

    @property
    def host(self) -> Tensor:
        """The tensor in the host's memory; the copy to it may still be in progress."""
        return self.copy.target


class Store:
    """Stores states, and restores them.

    Args:
        dtype: that features are packed into.
        offload: "cpu" moves an accelerator's features to the host's memory, "none" leaves them.
        mover: copies them; by default on streams.
    """

    def __init__(self, dtype: CacheDtype = "features", offload: Offload = "none", mover: Mover | None = None):
        self.dtype, self.offload = dtype, offload
        self._mover = (mover or StreamMover()) if offload == "cpu" else None
        self._leaving: deque[list[tuple[Tensor, Copy]]] = deque()  # sources of copies in progress, by `put`
        self._coming: list[Away] = []  # prefetched and not fetched yet
        self.most_moving = 0  # most bytes in transfer on the device at once in the present call

    def moves(self, device: torch.device) -> bool:
        """Whether features of `device` are offloaded between steps."""
        return self._mover is not None and self._mover.moves(device)

    def put(self, state: Any, lent: Sequence[Tensor], shared: Shared | None = None) -> Any:
        """Return the stored form of `state`, whose features are float tensors with as many channels as one of `lent`.

        Args:
            state: a tree of tensors.
            lent: features, (batch, …, channels), that others may overwrite, such as a module's input and output.
            shared: stores tensors once that several states have in common; pass the same one for all of them.
        """
        if self.dtype == "features" and self._mover is None:
            return state
        widths = {value.shape[-1] for value in lent}
        memory = {value.untyped_storage()._cdata for value in lent}
        shared = {} if shared is None else shared
        leaving: list[tuple[Tensor, Copy]] = []

        def kept(value: Tensor) -> Any:
            if value.ndim < 2 or value.shape[-1] not in widths or not value.is_floating_point():
                return value
            source, known = shared.get(id(value), (None, None))
            if source is None or source() is not value:
                known = tree_map_only(Tensor, lambda part: self._leave(part, memory, leaving), pack(value, self.dtype))
                shared[id(value)] = (weakref.ref(value), known)
            return known

        made = tree_map_only(Tensor, kept, state)
        if leaving:
            self._leaving.append(leaving)
            self._count()
            self._release(MOST_LEAVING)
        return made

    def prefetch(self, states: Iterable[Any]) -> None:
        """Begin to copy the offloaded tensors of `states` back, in this order; drop other prefetched ones."""
        if self._mover is None:
            return
        wanted = list(dict.fromkeys(leaf for leaf in tree_leaves(list(states)) if isinstance(leaf, Away)))
        self._drop([away for away in self._coming if away not in wanted])
        for away in wanted:
            if away.coming is None:
                self._bring(away)
        self._count()

    def get(self, state: Any) -> Any:
        """Return the state before `put`, up to the rounding of packing; copies on the device are the caller's alone."""
        if self.dtype == "features" and self._mover is None:
            return state

        def whole(leaf: Any) -> Any:
            if isinstance(leaf, Packed):
                scale = None if leaf.scale is None else self._arrived(leaf.scale)
                return unpack(Packed(self._arrived(leaf.values), scale, leaf.dtype))
            return self._arrived(leaf)

        return tree_map(whole, state, is_leaf=_is_one)

    def close(self) -> None:
        """End a call: finish its transfers, and free their memory on the device."""
        self._drop(list(self._coming))
        self._release(0)
        self.most_moving = 0

    def _leave(self, value: Tensor, lent: set[int], leaving: list[tuple[Tensor, Copy]]) -> Any:
        if self._mover is None or not self._mover.moves(value.device):
            return value
        source = value.clone() if value.untyped_storage()._cdata in lent else value
        leaving.append((source, self._mover.leave(source)))
        return Away(leaving[-1][1], value.device)

    def _release(self, most: int) -> None:
        """Release the sources of copies to the host, except for the last `most` puts."""
        assert self._mover is not None or not self._leaving
        while len(self._leaving) > most:
            for _, copy in self._leaving.popleft():
                assert self._mover is not None
                self._mover.release(copy)

    def _bring(self, away: Away) -> Copy:
        assert self._mover is not None
        away.coming = self._mover.bring(away.host, away.device, away.copy)
        self._coming.append(away)
        return away.coming

    def _arrived(self, leaf: Any) -> Any:
        if not isinstance(leaf, Away):
            return leaf
        assert self._mover is not None
        copy = leaf.coming or self._bring(leaf)
        self._coming.remove(leaf)
        leaf.coming = None
        return self._mover.arrive(copy)

    def _drop(self, unwanted: list[Away]) -> None:
        for away in unwanted:
            self._arrived(away)

    def _count(self) -> None:
        sources = (source for put in self._leaving for source, _ in put)
        targets = (away.coming.target for away in self._coming if away.coming is not None)
        moving = sum(value.numel() * value.element_size() for values in (sources, targets) for value in values)
        self.most_moving = max(self.most_moving, moving)


def tensors(state: Any) -> list[Tensor]:
    """Return the tensors of a stored state, on the device or offloaded."""
    leaves = (leaf.host if isinstance(leaf, Away) else leaf for leaf in tree_leaves(state))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def tensors_on_device(state: Any) -> list[Tensor]:
    """Return the tensors of a stored state that are not offloaded."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def _is_one(node: Any) -> bool:
    return isinstance(node, (Packed, Away))
