"""Take snapshots of values, and compare later values with them.

Tensors are compared as objects and by memory first, and by content only as a last resort, because reading content waits
for the device. Tensors made in inference mode do not count their in-place changes: the same object is then assumed to
have the same content.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
NEAR = 0.8  # the farthest move of a sample in one step of a loop
FAR = 1.2  # the same after a step with a far move; two noises are 1.4 apart


class Snapshot(NamedTuple):
    """A value at one call. `version` counts the in-place changes of a tensor.

    A strong reference keeps the value's memory from being reused. With a weak reference the value may be deleted.
    """

    strong: Any
    version: int | None
    weak: weakref.ref[Any] | None = None

    @property
    def value(self) -> Any:
        """The value; None if it has been deleted."""
        return self.strong if self.weak is None else self.weak()

    def weakened(self) -> Snapshot:
        """Return the snapshot with a weak reference to its tensor."""
        return self._replace(strong=None, weak=weakref.ref(self.strong)) if isinstance(self.strong, Tensor) else self

    def is_still(self, value: Any) -> bool:
        """Return whether `value` is the same tensor, and provably unchanged."""
        return value is self.value and self.version is not None and version_of(value) == self.version


def snapshot(value: Any) -> Snapshot:
    """Take a snapshot with a strong reference."""
    return Snapshot(value, version_of(value))


def is_untouched(past: Snapshot, value: Any) -> bool:
    """Return whether `value` is the same object, or a view of the same memory, and unchanged."""
    before = past.value
    if value is before:
        return version_of(value) == past.version
    if not isinstance(value, Tensor) or not isinstance(before, Tensor) or past.version is None:
        return False
    alike = (value.shape, value.stride(), value.dtype) == (before.shape, before.stride(), before.dtype)
    same_offset = value.storage_offset() == before.storage_offset()
    return alike and same_offset and same_memory(value, before) and value._version == past.version


def is_equal(past: Snapshot, value: Any) -> bool:
    """Return whether `value` has the content of the snapshot. Waits for the device of tensors."""
    before = past.value
    if isinstance(value, Tensor) and isinstance(before, Tensor):
        unchanged = version_of(before) == past.version
        alike = value.shape == before.shape and value.dtype == before.dtype and value.device == before.device
        return unchanged and alike and torch.equal(value, before)
    if isinstance(value, Tensor) or isinstance(before, Tensor):
        return False
    return bool(value == before)


def are_equal(past: Sequence[Snapshot], values: Sequence[Any]) -> bool:
    """Return whether all `values` have the content of the snapshots; content is read last."""
    if len(past) != len(values):
        return False
    changed = [(before, now) for before, now in zip(past, values, strict=True) if not is_untouched(before, now)]
    return all(is_equal(before, now) for before, now in changed)


def distance(past: Sequence[Snapshot], values: Sequence[Tensor]) -> float:
    """Return the distance of `values`, (batch, …) of any dtype, from the snapshots; infinity if they do not compare.

    Both are scaled to length 1. The distance is 0 only for equal values; two noises are 1.4 apart. Batches of different
    sizes, as when guidance doubles them, are compared by their first samples. Waits for the device.
    """
    if not values or len(past) != len(values):
        return math.inf
    if all(map(is_untouched, past, values)):
        return 0.0
    pairs = []
    for taken, now in zip(past, values, strict=True):
        before = taken.value
        if not isinstance(before, Tensor) or version_of(before) != taken.version or before.device != now.device:
            return math.inf
        if before.shape[1:] != now.shape[1:] or before.ndim != now.ndim:
            return math.inf
        rows = min(before.shape[0], now.shape[0]) if now.ndim else None
        pairs.append((before, now) if rows is None else (before[:rows], now[:rows]))
    if all(torch.equal(before, now) for before, now in pairs):
        return 0.0
    if not all(bool(value.isfinite().all()) for pair in pairs for value in pair):
        return NEAR  # the content shows nothing
    wide = [(before.detach().to(widest(before)), now.detach().to(widest(now))) for before, now in pairs]
    product = sum(float((before * now).sum()) for before, now in wide)
    squares = math.prod(sum(float(value.square().sum()) for value in side) for side in zip(*wide, strict=True))
    if not 0 < squares < math.inf:
        return math.inf
    return max(math.sqrt(max(2 - 2 * product / math.sqrt(squares), 0)), 1e-30)


def difference(timestep: Any, past: Any) -> float:
    """Return the difference of two timesteps: the sum over their entries, which constant entries do not affect.

    Video models give some tokens their own time. If the shapes differ, the largest entries are compared. Waits for the
    device once.
    """
    if isinstance(timestep, Tensor) and isinstance(past, Tensor) and timestep.shape == past.shape:
        return float((timestep.to(widest(timestep)) - past.to(widest(past))).sum())
    now, then = (value.max() if isinstance(value, Tensor) else value for value in (timestep, past))
    return float(now - then)


def version_of(value: Any) -> int | None:
    """Return the number of a tensor's in-place changes; None if it is not counted."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def same_memory(left: Any, right: Any) -> bool:
    """Return whether two tensors share one storage."""
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.device != right.device:
        return False
    return left.device.type != "meta" and left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def is_entry(timestep: Any) -> bool:
    """Return whether `timestep` is one entry, perhaps expanded, of a larger tensor: a table of timesteps."""
    if not isinstance(timestep, Tensor) or timestep.device.type == "meta":
        return False
    distinct = all(size == 1 or stride == 0 for size, stride in zip(timestep.shape, timestep.stride(), strict=True))
    return distinct and timestep.untyped_storage().nbytes() > timestep.element_size()


def table_size(timestep: Tensor) -> int:
    """Return the number of entries in the table of `timestep`."""
    return timestep.untyped_storage().nbytes() // timestep.element_size()


def varies(timestep: Tensor) -> bool:
    """Return whether the table of `timestep` has more than one value. Waits for the device."""
    whole = torch.as_strided(timestep, (table_size(timestep),), (1,), 0)
    return bool(whole.min() != whole.max())


def waits(values: Sequence[Tensor]) -> bool:
    """Return whether reading `values` waits for a device."""
    return any(value.device.type != "cpu" for value in values)


def widest(value: Tensor) -> torch.dtype:
    """Return the widest floating-point dtype on the device of `value`."""
    return torch.float32 if value.device.type in WITHOUT_FLOAT64 else torch.float64
