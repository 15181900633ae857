"""Where features lie between the steps: packed into fewer bytes, and in the host's memory where that is asked for.

Knows nothing of forecasters, units or branches: it is given states, trees of tuples, lists and dictionaries, and gives
them back. What of a state are features is told by their channels; the rest, numbers for each sample, stays as it is.
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

MOST_LEAVING = 2  # states that may be on their way to the host while units are computed

Shared = dict[int, tuple["weakref.ref[Tensor]", Any]]
"""What has been put of tensors that are still alive, by their identity."""


class Away:
    """A tensor in the host's memory, the device that it came from, and its copy there while one is under way."""

    def __init__(self, copy: Copy, device: torch.device):
        self.copy, self.device = copy, device
        self.coming: Copy | None = None

    @property
    def host(self) -> Tensor:
        """The tensor in the host's memory; what wrote it may not have ended."""
        return self.copy.target


class Store:
    """Puts states away and gets them back.

    Args:
        dtype: what features are packed into.
        offload: "cpu" moves features that lie on an accelerator to the host's memory, "none" leaves them.
        mover: what copies them.
    """

    def __init__(self, dtype: CacheDtype = "features", offload: Offload = "none", mover: Mover | None = None):
        self.dtype, self.offload = dtype, offload
        self._mover = (mover or StreamMover()) if offload == "cpu" else None
        self._leaving: deque[list[tuple[Tensor, Copy]]] = deque()  # sources of copies under way, put by put
        self._coming: list[Away] = []  # those whose copies on the device nobody has got yet
        self.most_moving = 0  # most bytes of copies that have lain on the device at once in the present call

    def moves(self, device: torch.device) -> bool:
        """Whether features that were made on `device` lie in the host's memory between the steps."""
        return self._mover is not None and self._mover.moves(device)

    def put(self, state: Any, lent: Sequence[Tensor], shared: Shared | None = None) -> Any:
        """`state` as it is kept. Its features are the floating-point tensors with as many channels as one of `lent`.

        Args:
            lent: features that others hold, too, and may write into, as a module's own input and output.
            shared: what several states have in common is kept once, if they are put with the same `shared`.
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
        """Begin to bring back what `states` keep elsewhere, in this order; what was brought and not got is dropped."""
        if self._mover is None:
            return
        wanted = list(dict.fromkeys(leaf for leaf in tree_leaves(list(states)) if isinstance(leaf, Away)))
        self._drop([away for away in self._coming if away not in wanted])
        for away in wanted:
            if away.coming is None:
                self._bring(away)
        self._count()

    def get(self, state: Any) -> Any:
        """The state that was put: up to rounding where it was packed. Copies on the device are the caller's alone."""
        if self.dtype == "features" and self._mover is None:
            return state

        def whole(leaf: Any) -> Any:
            if isinstance(leaf, Packed):
                scale = None if leaf.scale is None else self._arrived(leaf.scale)
                return unpack(Packed(self._arrived(leaf.values), scale, leaf.dtype))
            return self._arrived(leaf)

        return tree_map(whole, state, is_leaf=_is_one)

    def close(self) -> None:
        """A call has come to its end: nothing of it is under way, or lies on the device, any longer."""
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
        """Forget the sources of copies to the host, but for the last `most` puts."""
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
    """The tensors that a state keeps alive, wherever they lie."""
    leaves = (leaf.host if isinstance(leaf, Away) else leaf for leaf in tree_leaves(state))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def tensors_on_device(state: Any) -> list[Tensor]:
    """Those that lie where the features were made."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def _is_one(node: Any) -> bool:
    return isinstance(node, (Packed, Away))
