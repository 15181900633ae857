"""Tells requests, denoising steps and guidance branches apart from the calls of a transformer.

Knows nothing of forecasts or schedules. Calls are never counted to find a branch: parity breaks with guidance
intervals, interrupts and two-stage schedulers. The device is waited for only where nothing else decides: tensors are
compared as objects and by their place in memory first, by content last. In inference mode tensors carry no count of
their changes in place, and the very object is taken to hold what it held.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache.expansion import widest

MOST_BRANCHES = 8


class Seen(NamedTuple):
    """A value as it was at one call. `version` counts the in-place changes of a tensor."""

    value: Any
    version: int | None


def see(value: Any) -> Seen:
    """Remember `value`; a tensor is kept by reference, so that its memory cannot be given to another."""
    return Seen(value, _version(value))


def is_untouched(seen: Seen, value: Any) -> bool:
    """Whether `value` is the very object of `seen`, unchanged since."""
    return value is seen.value and _version(value) == seen.version


def is_equal(seen: Seen, value: Any) -> bool:
    """Whether `value` holds what `seen` held; comparing the content of tensors waits for their device."""
    past = seen.value
    if isinstance(value, Tensor) and isinstance(past, Tensor):
        unchanged = _version(past) == seen.version
        alike = value.shape == past.shape and value.dtype == past.dtype and value.device == past.device
        return unchanged and alike and torch.equal(value, past)
    if isinstance(value, Tensor) or isinstance(past, Tensor):
        return False
    return bool(value == past)


def difference(timestep: Any, past: Any) -> float:
    """How far `timestep` lies from `past`: entries added up, so that those which stand still do not count.

    Video models give some tokens a time of their own. Where the shapes differ the largest entries are compared. Waits
    for the device once.
    """
    if isinstance(timestep, Tensor) and isinstance(past, Tensor) and timestep.shape == past.shape:
        return float((timestep.to(widest(timestep)) - past.to(widest(past))).sum())
    now, then = (value.max() if isinstance(value, Tensor) else value for value in (timestep, past))
    return float(now - then)


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else None


def _sign(number: Any) -> int:
    return (number > 0) - (number < 0)


def _is_entry(timestep: Any) -> bool:
    """Whether `timestep` is one entry, perhaps expanded, of a larger tensor: of a table of timesteps."""
    if not isinstance(timestep, Tensor) or timestep.device.type == "meta":
        return False
    distinct = all(size == 1 or stride == 0 for size, stride in zip(timestep.shape, timestep.stride(), strict=True))
    return distinct and timestep.untyped_storage().nbytes() > timestep.element_size()


def _varies(timestep: Tensor) -> bool:
    """Whether the tensor that `timestep` is an entry of holds more than one value; waits for the device."""
    size = timestep.untyped_storage().nbytes() // timestep.element_size()
    whole = torch.as_strided(timestep, (size,), (1,), 0)
    return bool(whole.min() != whole.max())


def _same_memory(left: Any, right: Any) -> bool:
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.device != right.device:
        return False
    if left.device.type == "meta":
        return False
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()


class Placement(NamedTuple):
    """Where a call stands: whether it opens a request, whether it opens a step, and the name of its branch.

    The branch is None where the call comes again within a step and nothing tells it from the earlier one. The step is
    doubtful where it might as well be the first of another loop: the second call of a loop written by hand whose
    timestep has not moved.
    """

    new_request: bool
    new_step: bool
    branch: str | None
    doubtful: bool = False


class Loop(NamedTuple):
    """What a pipeline's scheduler shows of the sampling loop.

    Attributes:
        timesteps: the tensor of timesteps, which is replaced whenever a request begins.
        step_index: the scheduler's own count of its steps, -1 before the first, None where it does not count.
        repeats: whether a timestep occurs twice, as with schedulers of the second order.
    """

    timesteps: Any
    step_index: int | None = None
    repeats: bool = False


class Tracker:
    """Follows the calls of one transformer.

    Args:
        time_runs: -1 where the timestep falls as sampling goes on, 1 where it rises.
    """

    def __init__(self, time_runs: int):
        self._time_runs = time_runs
        self._memory_runs: int | None = None  # whether time goes up (1) or down (-1) the table of timesteps
        self._backwards_in_a_row = 0
        self.reset()

    def reset(self) -> None:
        """The next call opens a request."""
        self._branches: list[tuple[str, list[Seen]]] = []
        self._timestep: Seen | None = None
        self._snapshot: Any = None  # the timestep's content, which outlives changes in place
        self._loop: Loop | None = None
        self._rows = 0
        self._first_sample: list[Seen] = []
        self._served: set[str] = set()
        self._step = 0

    @property
    def runs_backwards(self) -> bool:
        """Whether call after call opens a request because its timestep lies on the wrong side of the last."""
        return self._backwards_in_a_row >= 3

    def place(
        self,
        timestep: Any,
        conditioning: list[Any],
        context: str | None,
        rows: int,
        loop: Loop | None,
        total_steps: int | None,
        sample: list[Any],
    ) -> Placement:
        """Place a call.

        Args:
            timestep: tensor of any shape, or a number.
            conditioning: the arguments that tell guidance branches apart: the very tensors of an earlier call, else
                their content.
            context: the branch's name, where the caller gives one; `conditioning` is then not looked at.
            rows: size of the batch.
            loop: what the pipeline's scheduler shows, or None.
            total_steps: number of steps of the present request, if it is known.
            sample: the tensors of the noisy sample.
        """
        branch = context if context is not None else self._find_branch(conditioning)
        opens_request, opens_step, doubtful = self._compare(timestep, branch, rows, loop, total_steps, sample)
        if opens_request:
            self.reset()
            self._first_sample = [see(tensor) for tensor in sample]
        elif opens_step:
            self._step += 1
            self._served = set()
        elif branch in self._served:
            return Placement(False, False, None)
        if branch is None or opens_request:
            branch = context if context is not None else self._add_branch(conditioning)
        self._served.add(branch)
        self._timestep, self._loop, self._rows = see(timestep), loop, rows
        self._snapshot = timestep.clone() if isinstance(timestep, Tensor) else timestep
        return Placement(opens_request, opens_request or opens_step, branch, doubtful)

    def forget_oldest_branch(self) -> str | None:
        """Name of a branch dropped because there are more than `MOST_BRANCHES`, or None."""
        return self._branches.pop(0)[0] if len(self._branches) > MOST_BRANCHES else None

    def _find_branch(self, conditioning: list[Any]) -> str | None:
        for match in (is_untouched, is_equal):
            for place, (name, seen) in enumerate(self._branches):
                if len(seen) == len(conditioning) and all(map(match, seen, conditioning)):
                    self._branches[place] = (name, [see(value) for value in conditioning])
                    return name
        return None

    def _add_branch(self, conditioning: list[Any]) -> str:
        taken = {name for name, _ in self._branches}
        name = next(str(number) for number in range(len(taken) + 1) if str(number) not in taken)
        self._branches.append((name, [see(value) for value in conditioning]))
        return name

    def _compare(
        self,
        timestep: Any,
        branch: str | None,
        rows: int,
        loop: Loop | None,
        total_steps: int | None,
        sample: list[Any],
    ) -> tuple[bool, bool, bool]:
        """Whether a call opens a request, whether it opens a step, and whether that is doubtful."""
        past = self._loop
        if self._timestep is None or (past is not None and (loop is None or loop.timesteps is not past.timesteps)):
            return True, True, False
        served = branch in self._served
        ticked = loop is not None and past is not None and loop.step_index != past.step_index
        if total_steps is not None and served and self._step + 1 >= total_steps and (loop is None or ticked):
            return True, True, False
        if loop is None and self._is_another_loop(timestep, served, rows):
            self._backwards_in_a_row = self._backwards_in_a_row + 1 if self._step == 0 else 0
            return True, True, False
        counts = loop is not None and loop.step_index is not None
        move = self._movement(timestep, served and loop is not None and (ticked or not counts))
        if move is None:
            return False, True, False
        if move < 0:
            self._backwards_in_a_row = self._backwards_in_a_row + 1 if self._step == 0 else 0
            return True, True, False
        if move == 0 and served and loop is None and self._step == 0:
            # A loop that was broken off in its first step may have begun again: certainly so from the same noise, or
            # from one of another shape.
            again = not self._is_other_sample(sample)
            return again, True, not again
        comes_again = served and (loop is None or loop.repeats or ticked)
        return False, comes_again or move > 0, False

    def _is_other_sample(self, sample: list[Any]) -> bool:
        """Whether `sample` has the shape of the request's first and another content; may wait for the device."""
        first = [seen.value for seen in self._first_sample]
        if [value.shape for value in sample] != [value.shape for value in first]:
            return False
        return not all(is_equal(seen, value) for seen, value in zip(self._first_sample, sample, strict=True))

    def _is_another_loop(self, timestep: Any, served: bool, rows: int) -> bool:
        """Whether another table of timesteps shows that a loop was broken off and a second one has begun.

        A loop that copies its table for each call goes on at the copy's next entry; a second loop begins elsewhere, or
        at the same place with another timestep. Both stand at the first entry if the first loop made one step only:
        then the same branch again, or another size of batch, tells.
        """
        assert self._timestep is not None
        past = self._timestep.value
        if not (_is_entry(timestep) and _is_entry(past)) or _same_memory(timestep, past):
            return False
        moved = timestep.storage_offset() - past.storage_offset()
        if moved:
            return bool(moved < 0 or moved > 1)
        if not _varies(timestep):
            return False  # a piece of a batch's timesteps, made anew for each call
        first = self._step == 0 and (served or rows != self._rows)
        return first or difference(timestep, self._snapshot) != 0

    def _movement(self, timestep: Any, same_request: bool) -> int | None:
        """1 where the timestep has moved on, 0 where it stands, -1 where it has gone back.

        None where that would wait for the device although the caller knows enough: the request goes on (`same_request`)
        and the branch comes again, so that the step does not.
        """
        assert self._timestep is not None
        past, version = self._timestep
        memory = None
        if (
            _same_memory(timestep, past)
            and _version(timestep) == version
            and (version is not None or _is_entry(timestep))
        ):
            memory = _sign(timestep.storage_offset() - past.storage_offset())
            if memory == 0:
                return 0
            if self._memory_runs is not None:
                return memory * self._memory_runs
        elif same_request and isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return None
        elif not _same_memory(timestep, past):
            self._memory_runs = None
        move = _sign(difference(timestep, self._snapshot)) * self._time_runs
        if memory and move:
            self._memory_runs = memory * move
        return move


def index_in(timesteps: Tensor, timestep: Any, time_runs: int) -> int:
    """Place of a request's first timestep among the scheduler's, which is not 0 where a picture is only reworked.

    Pipelines hand the scheduler's timesteps to the transformer as they are or divided by 1000, and where time rises
    (`time_runs` 1) counted from the other end; anything else counts as the first.
    """
    first = timestep
    if isinstance(timestep, Tensor):  # entries that stand still are 0 where time falls, about 1 where it rises
        first = timestep.max() if time_runs < 0 else timestep.min()
    first = float(first)
    table = timesteps.detach().cpu().to(torch.float64)  # in this order, as MPS has no float64
    near = []
    for scaled in (first, first * 1000) if time_runs < 0 else (1 - first, 1000 - first, 1000 - first * 1000):
        distance = (table - scaled).abs()
        nearest = int(distance.argmin())
        if distance[nearest] <= 5e-3 * max(1.0, abs(scaled)):
            near.append(nearest)
    return min(near, default=0)
