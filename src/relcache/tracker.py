"""Tells requests, denoising steps and guidance branches apart from the calls of a transformer.

Knows nothing of forecasts or schedules. Calls are never counted to find a branch: parity breaks with guidance
intervals, interrupts and two-stage schedulers. A host synchronisation is made only where nothing else decides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_BRANCHES = 8


class Seen(NamedTuple):
    """A value as it was at one call. `version` counts the in-place changes of a tensor."""

    value: Any
    version: int | None


def see(value: Any) -> Seen:
    """Remember `value`; a tensor is kept by reference, so that its memory cannot be given to another."""
    counted = isinstance(value, Tensor) and not value.is_inference()
    return Seen(value, value._version if counted else None)


def is_untouched(seen: Seen, value: Any) -> bool:
    """Whether `value` is the very object of `seen`, unchanged since."""
    return value is seen.value and see(value).version == seen.version and not _uncounted(value)


def is_equal(seen: Seen, value: Any) -> bool:
    """Whether `value` holds what `seen` holds: first the very object, then its content."""
    if is_untouched(seen, value):
        return True
    past = seen.value
    if isinstance(value, Tensor) and isinstance(past, Tensor):
        unchanged = see(past).version == seen.version
        alike = value.shape == past.shape and value.dtype == past.dtype and value.device == past.device
        return unchanged and alike and torch.equal(value, past)
    if isinstance(value, Tensor) or isinstance(past, Tensor):
        return False
    return bool(value == past)


def movement(seen: Seen, timestep: Any) -> int | None:
    """How the position of `timestep` lies to the remembered one, if that shows without reading a device's memory.

    Timesteps taken from one tensor are compared by their place in it: 1 is later in the tensor, 0 the same place,
    -1 earlier. None where they do not share memory.
    """
    past = seen.value
    if not (isinstance(timestep, Tensor) and isinstance(past, Tensor)) or timestep.device != past.device:
        return None
    if _uncounted(timestep) or timestep._version != seen.version or timestep.device.type == "meta":
        return None
    if timestep.untyped_storage().data_ptr() != past.untyped_storage().data_ptr():
        return None
    return _sign(timestep.storage_offset() - past.storage_offset())


def value_of(timestep: Any) -> float:
    """The timestep as a number; of a tensor the largest entry (some video models set conditioned tokens to 0)."""
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)


def _uncounted(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_inference()


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


class Placement(NamedTuple):
    """Where a call stands: whether it opens a request, and whether it opens a step."""

    new_request: bool
    new_step: bool


class Tracker:
    """Follows the calls of one transformer.

    Args:
        time_runs: -1 where the timestep falls as sampling goes on, 1 where it rises.
    """

    def __init__(self, time_runs: int):
        self._time_runs = time_runs
        self._branches: list[tuple[str, list[Seen]]] = []
        self._timestep: Seen | None = None
        self._snapshot: Any = None  # the timestep's content, which outlives changes in place
        self._request: Seen | None = None
        self._served: set[str] = set()
        self._step = 0
        self.backwards_in_a_row = 0

    def reset(self) -> None:
        """The next call opens a request."""
        self._timestep = self._request = None
        self._branches, self._served, self._step = [], set(), 0

    def branch(self, conditioning: list[Any]) -> str:
        """Name of the branch that has this conditioning: the very tensors of an earlier call, else their content."""
        for match in (is_untouched, is_equal):
            for name, seen in self._branches:
                if len(seen) == len(conditioning) and all(map(match, seen, conditioning)):
                    return name
        taken = {name for name, _ in self._branches}
        name = next(str(number) for number in range(len(taken) + 1) if str(number) not in taken)
        self._branches.append((name, [see(value) for value in conditioning]))
        return name

    def forget_oldest_branch(self) -> str | None:
        """Name of a branch dropped because there are more than `MOST_BRANCHES`, or None."""
        return self._branches.pop(0)[0] if len(self._branches) > MOST_BRANCHES else None

    def place(self, timestep: Any, branch: str, request: Any, total_steps: int | None) -> Placement:
        """Place a call of `branch` at `timestep`.

        Args:
            timestep: tensor of any shape, or a number.
            branch: name of the guidance branch.
            request: an object that is replaced whenever a request begins (a pipeline's tensor of timesteps), or None.
            total_steps: number of steps of the present request, if it is known.
        """
        opens_request, opens_step = self._compare(timestep, branch, request, total_steps)
        if opens_request:
            own = [entry for entry in self._branches if entry[0] == branch]
            self.reset()
            self._branches = own
        elif opens_step:
            self._step += 1
            self._served = set()
        self._served.add(branch)
        self._timestep, self._request = see(timestep), see(request)
        self._snapshot = timestep.clone() if isinstance(timestep, Tensor) else timestep
        return Placement(opens_request, opens_request or opens_step)

    def _compare(self, timestep: Any, branch: str, request: Any, total_steps: int | None) -> tuple[bool, bool]:
        if self._timestep is None or (self._request is not None and request is not self._request.value):
            return True, True
        served = branch in self._served
        if total_steps is not None and served and self._step + 1 >= total_steps:
            return True, True
        move = movement(self._timestep, timestep)
        on_device = isinstance(timestep, Tensor) and timestep.device.type != "cpu"
        if move is None and served and request is not None and on_device:
            return False, True  # the pipeline says that the request goes on, and the branch that the step does not
        if move is None:
            move = _sign((value_of(timestep) - value_of(self._snapshot)) * self._time_runs)
        if move < 0:
            self.backwards_in_a_row = self.backwards_in_a_row + 1 if self._step == 0 else 0
            return True, True
        if move == 0 and served and self._step == 0 and request is None:
            return True, True  # a loop that was broken off in its first step has begun again
        return False, served or move > 0
