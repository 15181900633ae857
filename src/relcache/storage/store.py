"""Store features between steps, on request packed into fewer bytes or offloaded to the host's memory.

Knows nothing of forecasters, units or branches: states are trees of tuples, lists and dictionaries. The number of
channels identifies the features in a state. The rest, numbers for each sample, is stored unchanged.
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
"""The stored forms of live tensors, by id."""


class Offloaded:
    """An offloaded tensor: its copy in the host's memory, its device, and the present copy back to it."""

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
        dtype: type of packed features.
        offload: "cpu" moves an accelerator's features to the host's memory, "none" leaves them.
        mover: copies offloaded features; by default on streams.
    """

    def __init__(self, dtype: CacheDtype = "features", offload: Offload = "none", mover: Mover | None = None):
        self.dtype, self.offload = dtype, offload
        self._mover = (mover or StreamMover()) if offload == "cpu" else None
        self._leaving: deque[list[tuple[Tensor, Copy]]] = deque()  # sources of copies in progress, by `put`
        self._coming: list[Offloaded] = []  # prefetched and not fetched yet
        self.most_moving = 0  # greatest number of bytes in transfer on the device, in the present call

    def moves(self, device: torch.device) -> bool:
        """Return whether features on `device` are offloaded between steps."""
        return self._mover is not None and self._mover.moves(device)

    def put(self, state: Any, lent: Sequence[Tensor], shared: Shared | None = None) -> Any:
        """Return the stored form of `state`.

        Args:
            state: a tree of tensors. Features are its float tensors with as many channels as one of `lent`.
            lent: features, (batch, …, channels), that others may overwrite, such as a module's input and output.
            shared: for states with common tensors, which are stored once; pass the same dictionary for all of them.
        """
        if self.dtype == "features" and self._mover is None:
            return state
        widths = {value.shape[-1] for value in lent}
        memory = {value.untyped_storage()._cdata for value in lent}
        shared = {} if shared is None else shared
        leaving: list[tuple[Tensor, Copy]] = []

        def stored(value: Tensor) -> Any:
            if value.ndim < 2 or value.shape[-1] not in widths or not value.is_floating_point():
                return value
            source, known = shared.get(id(value), (None, None))
            if source is None or source() is not value:
                known = tree_map_only(Tensor, lambda part: self._leave(part, memory, leaving), pack(value, self.dtype))
                shared[id(value)] = (weakref.ref(value), known)
            return known

        result = tree_map_only(Tensor, stored, state)
        if leaving:
            self._leaving.append(leaving)
            self._count()
            self._release(MOST_LEAVING)
        return result

    def prefetch(self, states: Iterable[Any]) -> None:
        """Start copying the offloaded tensors of `states` back, in this order; drop other prefetched tensors."""
        if self._mover is None:
            return
        wanted = list(dict.fromkeys(leaf for leaf in tree_leaves(list(states)) if isinstance(leaf, Offloaded)))
        self._drop([away for away in self._coming if away not in wanted])
        for away in wanted:
            if away.coming is None:
                self._bring(away)
        self._count()

    def get(self, state: Any) -> Any:
        """Return the original state, up to rounding by packing. The store keeps no restored copies."""
        if self.dtype == "features" and self._mover is None:
            return state

        def restored(leaf: Any) -> Any:
            if isinstance(leaf, Packed):
                scale = None if leaf.scale is None else self._arrived(leaf.scale)
                return unpack(Packed(self._arrived(leaf.values), scale, leaf.dtype))
            return self._arrived(leaf)

        return tree_map(restored, state, is_leaf=_is_stored_form)

    def close(self) -> None:
        """End a call: finish its transfers, and free their device memory."""
        self._drop(list(self._coming))
        self._release(0)
        self.most_moving = 0

    def _leave(self, value: Tensor, lent: set[int], leaving: list[tuple[Tensor, Copy]]) -> Any:
        if self._mover is None or not self._mover.moves(value.device):
            return value
        source = value.clone() if value.untyped_storage()._cdata in lent else value
        leaving.append((source, self._mover.leave(source)))
        return Offloaded(leaving[-1][1], value.device)

    def _release(self, most: int) -> None:
        """Release the sources of copies to the host, except for the last `most` calls of `put`."""
        assert self._mover is not None or not self._leaving
        while len(self._leaving) > most:
            for _, copy in self._leaving.popleft():
                assert self._mover is not None
                self._mover.release(copy)

    def _bring(self, away: Offloaded) -> Copy:
        assert self._mover is not None
        away.coming = self._mover.bring(away.host, away.device, away.copy)
        self._coming.append(away)
        return away.coming

    def _arrived(self, leaf: Any) -> Any:
        if not isinstance(leaf, Offloaded):
            return leaf
        assert self._mover is not None
        copy = leaf.coming or self._bring(leaf)
        self._coming.remove(leaf)
        leaf.coming = None
        return self._mover.arrive(copy)

    def _drop(self, unwanted: list[Offloaded]) -> None:
        for away in unwanted:
            self._arrived(away)

    def _count(self) -> None:
        sources = (source for put in self._leaving for source, _ in put)
        targets = (away.coming.target for away in self._coming if away.coming is not None)
        moving = sum(value.numel() * value.element_size() for values in (sources, targets) for value in values)
        self.most_moving = max(self.most_moving, moving)


def tensors(state: Any) -> list[Tensor]:
    """Return the tensors of a stored state, of any shape and dtype, both on the device and offloaded."""
    leaves = (leaf.host if isinstance(leaf, Offloaded) else leaf for leaf in tree_leaves(state))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def tensors_on_device(state: Any) -> list[Tensor]:
    """Return the tensors of a stored state that are not offloaded."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def _is_stored_form(node: Any) -> bool:
    return isinstance(node, (Packed, Offloaded))
