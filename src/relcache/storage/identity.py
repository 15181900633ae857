"""Snapshots of values at one call, and comparisons of later values with them.

Tensors are compared as objects first, then by address, and by content last, so that only undecided cases wait for the
device. In inference mode tensors have no version counter; the same object then counts as unchanged.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
NEAR = 0.8  # greatest `distance` of a sample from one step of a loop to the next
FAR = 1.2  # the same after a step in which it moved far; two noises are 1.4 apart


class Snapshot(NamedTuple):
    """A value at one call, with the tensor's version, the count of its in-place changes.

    A strong reference keeps the value's memory from being reused; a weak one may be dead.
    """

    strong: Any
    version: int | None
    weak: weakref.ref[Any] | None = None

    @property
    def value(self) -> Any:
        """The value; None if it is gone."""
        return self.strong if self.weak is None else self.weak()

    def is_still(self, value: Any) -> bool:
        """Whether `value` is the same tensor, and provably unchanged since."""
        return value is self.value and self.version is not None and version_of(value) == self.version


def snapshot(value: Any) -> Snapshot:
    """Return a snapshot that keeps `value` alive."""
    return Snapshot(value, version_of(value))


def weak_snapshot(value: Any) -> Snapshot:
    """Return a snapshot that does not keep `value` alive if it is a tensor."""
    return weakened(snapshot(value))


def weakened(past: Snapshot) -> Snapshot:
    """Return the same snapshot with a weak reference to its tensor."""
    is_strong = isinstance(past.strong, Tensor)
    return past._replace(strong=None, weak=weakref.ref(past.strong)) if is_strong else past


def is_untouched(past: Snapshot, value: Any) -> bool:
    """Whether `value` is the object of the snapshot, or the same piece of memory, unchanged since."""
    before = past.value
    if value is before:
        return version_of(value) == past.version
    if not isinstance(value, Tensor) or not isinstance(before, Tensor) or past.version is None:
        return False
    layout, past_layout = (
        (tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset()) for tensor in (value, before)
    )
    return layout == past_layout and same_memory(value, before) and value._version == past.version


def is_equal(past: Snapshot, value: Any) -> bool:
    """Whether `value` has the content of the snapshot; comparing tensors waits for their device."""
    before = past.value
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        unchanged = version_of(before) == past.version
        alike = value.shape == before.shape and value.dtype == before.dtype and value.device == before.device
        return unchanged and alike and torch.equal(value, before)
    if isinstance(value, Tensor) or isinstance(before, Tensor):
        return False
    return bool(value == before)


def are_equal(past: Sequence[Snapshot], values: Sequence[Any]) -> bool:
    """Whether all `values` have the content of the snapshots; contents are compared only where objects differ."""
    if len(past) != len(values):
        return False
    changed = [(one, value) for one, value in zip(past, values, strict=True) if not is_untouched(one, value)]
    return all(is_equal(one, value) for one, value in changed)


def distance(past: Sequence[Snapshot], values: Sequence[Tensor]) -> float:
    """Return the L2 distance of `values`, each (batch, …), from the snapshots, if both are scaled to length 1.

    It is 0 only for equal values, 1.4 for two noises, and infinity for values that cannot be compared. If the batch
    sizes differ, as where guidance doubles one, the first samples are compared. Waits for the device.
    """
    if not values or len(past) != len(values):
        return math.inf
    if all(map(is_untouched, past, values)):
        return 0.0
    pairs = []
    for one, now in zip(past, values, strict=True):
        before = one.value
        if not isinstance(before, Tensor) or version_of(before) != one.version or before.device != now.device:
            return math.inf
        if before.shape[1:] != now.shape[1:] or before.ndim != now.ndim:
            return math.inf
        rows = min(before.shape[0], now.shape[0]) if now.ndim else None
        pairs.append((before, now) if rows is None else (before[:rows], now[:rows]))
    if all(torch.equal(before, now) for before, now in pairs):
        return 0.0
    if not all(bool(value.isfinite().all()) for pair in pairs for value in pair):
        return NEAR  # NaN or infinity tells nothing
    wide = [(before.detach().to(widest(before)), now.detach().to(widest(now))) for before, now in pairs]
    product = sum(float((before * now).sum()) for before, now in wide)
    squares = math.prod(sum(float(value.square().sum()) for value in side) for side in zip(*wide, strict=True))
    if not 0 < squares < math.inf:
        return math.inf
    return max(math.sqrt(max(2 - 2 * product / math.sqrt(squares), 0)), 1e-30)


def difference(timestep: Any, past: Any) -> float:
    """Return `timestep - past`, summed over the entries, as video models may fix the time of some tokens.

    Both are numbers or tensors of any shape; if the shapes differ, the largest entries are compared. Waits for the
    device once.
    """
    if isinstance(timestep, Tensor) and isinstance(past, Tensor) and timestep.shape == past.shape:
        return float((timestep.to(widest(timestep)) - past.to(widest(past))).sum())
    now, then = (value.max() if isinstance(value, Tensor) else value for value in (timestep, past))
    return float(now - then)


def version_of(value: Any) -> int | None:
    """Return the count of a tensor's in-place changes; None if there is none."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def same_memory(left: Any, right: Any) -> bool:
    """Whether two values are tensors that share one storage; false on the meta device."""
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.device != right.device:
        return False
    return left.device.type != "meta" and left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def is_entry(timestep: Any) -> bool:
    """Whether `timestep` is one entry, perhaps expanded, of a larger tensor, a table of timesteps."""
    if not isinstance(timestep, Tensor) or timestep.device.type == "meta":
        return False
    distinct = all(size == 1 or stride == 0 for size, stride in zip(timestep.shape, timestep.stride(), strict=True))
    return distinct and timestep.untyped_storage().nbytes() > timestep.element_size()


def last_entry(timestep: Tensor) -> int:
    """Return the index of the last entry of the table that `timestep` is an entry of."""
    return timestep.untyped_storage().nbytes() // timestep.element_size() - 1


def waits(values: Sequence[Tensor]) -> bool:
    """Whether reading `values` waits for a device."""
    return any(value.device.type != "cpu" for value in values)


def varies(timestep: Tensor) -> bool:
    """Whether the table that `timestep` is an entry of contains different values; waits for the device."""
    whole = torch.as_strided(timestep, (last_entry(timestep) + 1,), (1,), 0)
    return bool(whole.min() != whole.max())


def widest(value: Tensor) -> torch.dtype:
    """Return the widest float dtype of the device of `value`."""
    return torch.float32 if value.device.type in WITHOUT_FLOAT64 else torch.float64
