"""Values as they were at one call, and how later ones compare with them.

The device is waited for only where nothing else decides: tensors are compared as objects and by their place in memory
first, by content last. In inference mode tensors carry no count of their changes in place, and the very object is taken
to hold what it held.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
NEAR = 0.8  # how far a sample may move from one step of a loop to the next
FAR = 1.2  # the same where it has moved far before; two noises lie 1.4 apart


class Seen(NamedTuple):
    """A value as it was at one call. `version` counts the in-place changes of a tensor.

    The value is held, so that its memory cannot be given to another; or only referred to, and then it may be gone.
    """

    held: Any
    version: int | None
    referred: weakref.ref[Any] | None = None

    @property
    def value(self) -> Any:
        """What was seen; None where it is gone."""
        return self.held if self.referred is None else self.referred()

    def is_still(self, value: Any) -> bool:
        """Whether `value` is the very tensor that was seen, and provably has not been changed since."""
        return value is self.value and self.version is not None and version_of(value) == self.version


def see(value: Any) -> Seen:
    """Remember `value` and hold it."""
    return Seen(value, version_of(value))


def glimpse(value: Any) -> Seen:
    """Remember `value` without holding it."""
    return Seen(None, version_of(value), weakref.ref(value)) if isinstance(value, Tensor) else see(value)


def let_go(seen: Seen) -> Seen:
    """The same, not held any longer."""
    return seen._replace(held=None, referred=weakref.ref(seen.held)) if isinstance(seen.held, Tensor) else seen


def is_untouched(seen: Seen, value: Any) -> bool:
    """Whether `value` is the very object of `seen`, or the same piece of memory, unchanged since."""
    past = seen.value
    if value is past:
        return version_of(value) == seen.version
    if not isinstance(value, Tensor) or not isinstance(past, Tensor) or seen.version is None:
        return False
    alike = (value.shape, value.stride(), value.dtype) == (past.shape, past.stride(), past.dtype)
    offset = value.storage_offset() == past.storage_offset()
    return alike and offset and same_memory(value, past) and value._version == seen.version


def is_equal(seen: Seen, value: Any) -> bool:
    """Whether `value` holds what `seen` held; comparing the content of tensors waits for their device."""
    past = seen.value
    if isinstance(value, Tensor) and isinstance(past, Tensor):
        unchanged = version_of(past) == seen.version
        alike = value.shape == past.shape and value.dtype == past.dtype and value.device == past.device
        return unchanged and alike and torch.equal(value, past)
    if isinstance(value, Tensor) or isinstance(past, Tensor):
        return False
    return bool(value == past)


def are_equal(seen: Sequence[Seen], values: Sequence[Any]) -> bool:
    """Whether all of `values` hold what `seen` held; objects are compared first, contents only then."""
    if len(seen) != len(values):
        return False
    changed = [(past, value) for past, value in zip(seen, values, strict=True) if not is_untouched(past, value)]
    return all(is_equal(past, value) for past, value in changed)


def distance(seen: Sequence[Seen], values: Sequence[Tensor]) -> float:
    """How far `values` lie from those seen, if both are brought to length 1; infinity where they cannot be compared.

    0 only where they are equal. Two noises lie 1.4 apart. Where batches have two sizes, as where guidance doubles them,
    the first samples are compared. Waits for the device.
    """
    past = [one.value for one in seen]
    if not values or len(past) != len(values):
        return math.inf
    if all(map(is_untouched, seen, values)):
        return 0.0
    pairs = []
    for before, now, one in zip(past, values, seen, strict=True):
        if not isinstance(before, Tensor) or version_of(before) != one.version or before.device != now.device:
            return math.inf
        if before.shape[1:] != now.shape[1:] or before.ndim != now.ndim:
            return math.inf
        rows = min(before.shape[0], now.shape[0]) if now.ndim else None
        pairs.append((before, now) if rows is None else (before[:rows], now[:rows]))
    if all(torch.equal(before, now) for before, now in pairs):
        return 0.0
    if not all(bool(value.isfinite().all()) for pair in pairs for value in pair):
        return NEAR  # says nothing of where it comes from
    wide = [(before.detach().to(widest(before)), now.detach().to(widest(now))) for before, now in pairs]
    product = sum(float((before * now).sum()) for before, now in wide)
    squares = math.prod(sum(float(value.square().sum()) for value in side) for side in zip(*wide, strict=True))
    if not 0 < squares < math.inf:
        return math.inf
    return max(math.sqrt(max(2 - 2 * product / math.sqrt(squares), 0)), 1e-30)


def difference(timestep: Any, past: Any) -> float:
    """How far `timestep` lies from `past`: entries added up, so that those which stand still do not count.

    Video models give some tokens a time of their own. Where the shapes differ the largest entries are compared. Waits
    for the device once.
    """
    if isinstance(timestep, Tensor) and isinstance(past, Tensor) and timestep.shape == past.shape:
        return float((timestep.to(widest(timestep)) - past.to(widest(past))).sum())
    now, then = (value.max() if isinstance(value, Tensor) else value for value in (timestep, past))
    return float(now - then)


def version_of(value: Any) -> int | None:
    """The count of a tensor's changes in place, None where there is none."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def same_memory(left: Any, right: Any) -> bool:
    """Whether two tensors lie in one piece of memory."""
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.device != right.device:
        return False
    if left.device.type == "meta":
        return False
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


def is_entry(timestep: Any) -> bool:
    """Whether `timestep` is one entry, perhaps expanded, of a larger tensor: of a table of timesteps."""
    if not isinstance(timestep, Tensor) or timestep.device.type == "meta":
        return False
    distinct = all(size == 1 or stride == 0 for size, stride in zip(timestep.shape, timestep.stride(), strict=True))
    return distinct and timestep.untyped_storage().nbytes() > timestep.element_size()


def last_entry(timestep: Tensor) -> int:
    """The place of the last entry of the table that `timestep` is an entry of."""
    return timestep.untyped_storage().nbytes() // timestep.element_size() - 1


def waits(values: Sequence[Tensor]) -> bool:
    """Whether reading `values` waits for a device."""
    return any(value.device.type != "cpu" for value in values)


def varies(timestep: Tensor) -> bool:
    """Whether the tensor that `timestep` is an entry of holds more than one value; waits for the device."""
    size = timestep.untyped_storage().nbytes() // timestep.element_size()
    whole = torch.as_strided(timestep, (size,), (1,), 0)
    return bool(whole.min() != whole.max())


def widest(value: Tensor) -> torch.dtype:
    """The widest dtype that the device of `value` has."""
    return torch.float32 if value.device.type in WITHOUT_FLOAT64 else torch.float64
