"""Tell requests and denoising steps apart from one caller's calls of a transformer.

If a pipeline runs, its call is the request, and its scheduler counts the steps. A hand-written loop is followed by its
timesteps, and by its sample where another loop could have the same timesteps. Two loops that cannot be told apart do
not use each other's cache.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache.session.branches import Branches, KnownBranch, Loop, Signs
from relcache.storage.identity import (
    FAR,
    NEAR,
    Snapshot,
    are_equal,
    difference,
    distance,
    is_entry,
    same_memory,
    snapshot,
    table_size,
    varies,
    version_of,
    waits,
)

MANY = 3  # one-step requests in a row that cause a note


class Position(NamedTuple):
    """The position of a call in its caller's loop.

    Attributes:
        new_request, new_step: whether the call begins one.
        branch: name of its branch; None if it looks like an earlier call of the step, and is computed in full.
        note: key of a note about the call.
        dropped: name of the branch dropped because there were too many.
    """

    new_request: bool
    new_step: bool
    branch: str | None
    note: str | None = None
    dropped: str | None = None


class Tracker:
    """Follows the calls of one caller.

    Args:
        time_runs: -1 if the timestep falls during sampling, 1 if it rises.
        is_certain: whether the calls certainly belong to one loop: one run of a pipeline, or a named loop.
        has_signal: whether branches share one error signal, to which another loop's call must not contribute.
    """

    def __init__(self, time_runs: int, is_certain: bool = False, has_signal: bool = False):
        self._time_runs, self._is_certain, self._has_signal = time_runs, is_certain, has_signal
        self._short_in_a_row = 0  # one-step requests
        self._suspects = False  # whether a loop stopped in the middle of its table, and may continue
        self.reset()

    def reset(self) -> None:
        """Discard the request; the next call begins a new one."""
        self._branches = Branches()
        self._timestep: Snapshot | None = None
        self._timestep_copy: Any = None  # a copy of its content, unaffected by in-place changes
        self._sample: list[Snapshot] = []  # of the last call
        self._memory_runs: int | None = None  # 1 if time runs up the table of timesteps, -1 if down
        self._proven = False  # whether the present call's timestep is the next entry of the same table
        self._moved = 0.0  # the farthest move of the sample in one step
        self._loop: Loop | None = None
        self._rows = 0
        self._step = 0

    def release(self) -> None:
        """Keep only weak references to the tensors of calls, after features were dropped or the request ended."""
        self._branches.release()
        self._sample = [past.weakened() for past in self._sample]

    def locate(self, signs: Signs, total_steps: int | None) -> Position:
        """Return the position of a call. `total_steps` is that of the present request; None if unknown."""
        if self._timestep is None:
            return self._open_request(signs)
        loop, past = signs.loop, self._loop
        if past is not None and (loop is None or loop.timesteps is not past.timesteps):
            return self._open_request(signs)
        alike = self._branches.alike(signs)
        branch, is_far = self._branches.choose(signs, alike)
        served = branch is not None and branch.served
        ticked = loop is not None and past is not None and loop.step_index != past.step_index
        certain = self._is_certain
        if not certain and self._is_another_table(signs.timestep, served, signs.rows):
            return self._open_request(signs)
        counts = loop is not None and loop.step_index is not None
        move = self._movement(signs.timestep, served and loop is not None and (ticked or not counts))
        over = total_steps is not None and served and self._step + 1 >= total_steps
        if (move is not None and move < 0) or (over and (ticked or (loop is None and move == 0))):
            return self._open_request(signs)
        if move == 0 and not (served and loop is not None and (loop.repeats or ticked)):
            return self._same_step(signs, branch, is_new=not alike or (is_far and certain))
        if not certain and (self._suspects or not self._proven or not waits(signs.sample)):
            moved = distance(branch.sample if branch is not None else self._sample, signs.sample)
            resized = self._proven and math.isinf(moved)  # the same table, but samples of another size
            if moved > self._farthest and not resized:
                is_jump = bool(alike) and not over and self._step > 0
                position = self._open_request(signs)
                return position._replace(note=position.note or ("jump" if is_jump else None))
            self._moved = max(self._moved, moved)
        self._branches.open_step()
        self._step += 1
        note = "number" if over and loop is None else None
        if alike and branch is None and not (is_far and certain):
            return self._record(signs, None, True, "repeated")
        return self._record(signs, branch or self._branches.add(signs), True, note)

    def follows(self, signs: Signs) -> bool:
        """Return whether a call may be the next one of this loop, in its present step or the next."""
        if self._timestep is None:
            return False
        branch, _ = self._branches.choose(signs, self._branches.alike(signs))
        move = self._movement(signs.timestep, False)
        if move == 0:
            return (branch is None or not branch.served) and distance(self._sample, signs.sample) == 0
        if branch is None or not move or move < 0:
            return False
        return distance(branch.sample, signs.sample) <= self._farthest

    @property
    def _farthest(self) -> float:
        """The farthest that the sample may move in one step of this loop.

        With few steps it moves far. The next entry of the same table proves the same loop, unless the sample has moved
        little before.
        """
        if self._proven and not self._step:
            return math.inf
        farthest = max(NEAR, 2 * self._moved)
        return farthest if self._proven else min(farthest, FAR)

    def _open_request(self, signs: Signs) -> Position:
        self._suspects = self._suspects or self._is_in_the_middle
        self._short_in_a_row = self._short_in_a_row + 1 if self._step == 0 and self._timestep is not None else 0
        self.reset()
        note = "short" if self._short_in_a_row >= MANY else None
        return self._record(signs, self._branches.add(signs), True, note)._replace(new_request=True)

    def _same_step(self, signs: Signs, branch: KnownBranch | None, is_new: bool) -> Position:
        """Return the position of a call at the same timestep: another branch, the same one, or another loop."""
        certain = self._is_certain
        if is_new:
            if not certain and distance(self._sample, signs.sample) > 0:
                # in the first step a branch with its own sample; later another loop's first call
                named = signs.context is not None and not self._branches.has_context(signs.context)
                if self._step or (self._has_signal and not named):
                    return self._open_request(signs)
            return self._record(signs, self._branches.add(signs), False)
        if branch is not None and not branch.served:
            return self._record(signs, branch, False)
        if branch is not None:
            apart = distance(branch.sample, signs.sample)
            if apart == 0 and not certain and self._step == 0:
                return self._open_request(signs)  # interrupted in its first step, and restarted
            differs = not are_equal(branch.others, signs.others)
            if (differs and (certain or apart == 0)) or (certain and apart > NEAR):
                return self._record(signs, self._branches.add(signs), False)
            branch.trusted = False
        return self._record(signs, None, False, "repeated" if certain else "again")

    def _record(self, signs: Signs, branch: KnownBranch | None, new_step: bool, note: str | None = None) -> Position:
        """Record the call, and return its position."""
        timestep = signs.timestep
        self._timestep, self._loop, self._rows = snapshot(timestep), signs.loop, signs.rows
        self._timestep_copy = timestep.clone() if isinstance(timestep, Tensor) else timestep
        self._sample = [snapshot(value) for value in signs.sample]
        if branch is None:
            return Position(False, new_step, None, note)
        branch.serve(signs)
        dropped = self._branches.drop_oldest()
        return Position(False, new_step, branch.name if branch.trusted else None, note, dropped)

    def _is_another_table(self, timestep: Any, served: bool, rows: int) -> bool:
        """Return whether another table of timesteps shows that a second loop has begun.

        A loop that copies its table for each call continues at the copy's next entry. A second loop begins at another
        entry, or at the same one with another timestep. After a single step both may begin at the first entry: then
        the same branch again, or another batch size, indicates the second loop.
        """
        assert self._timestep is not None
        past = self._timestep.value
        if not (is_entry(timestep) and is_entry(past)) or same_memory(timestep, past):
            return False
        moved = timestep.storage_offset() - past.storage_offset()
        if moved:
            return bool(moved < 0 or moved > 1)
        if not varies(timestep):
            return False  # a slice of a batch's timesteps, new for each call
        first = self._step == 0 and (served or rows != self._rows)
        return first or difference(timestep, self._timestep_copy) != 0

    def _movement(self, timestep: Any, same_request: bool) -> int | None:
        """Return 1 if the timestep has advanced, 0 if it is the same, -1 if it has gone back.

        Return None if an answer would wait for the device and is not needed: the request continues (`same_request`),
        and the branch has had its call in the step.
        """
        assert self._timestep is not None
        past = self._timestep.value
        memory, self._proven = 0, False
        version = version_of(timestep)
        unchanged = version == self._timestep.version and (version is not None or is_entry(timestep))
        if unchanged and same_memory(timestep, past):
            memory = timestep.storage_offset() - past.storage_offset()
            if memory == 0:
                return 0
            self._proven = abs(memory) == 1
            if self._memory_runs is not None:
                return sign(memory) * self._memory_runs
        elif same_request and isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return None
        move = sign(difference(timestep, self._timestep_copy)) * self._time_runs
        if memory and move:
            self._memory_runs = sign(memory) * move
        elif self._proven:  # two entries with one value, as in second-order schedulers
            return 1
        return move

    @property
    def _is_in_the_middle(self) -> bool:
        """Whether the last timestep was an entry of a table, but not its last entry."""
        past = self._timestep.value if self._timestep is not None else None
        if not isinstance(past, Tensor) or not is_entry(past):
            return False
        last = table_size(past) - 1
        return past.storage_offset() not in {0: (0, last), 1: (last,), -1: (0,)}[self._memory_runs or 0]


def sign(number: Any) -> int:
    """Return -1, 0 or 1."""
    return (number > 0) - (number < 0)


def index_in(timesteps: Tensor, timestep: Any, time_runs: int) -> int | None:
    """Return the index of a request's first timestep in the scheduler's table; above 0 in image-to-image requests.

    `timesteps` is (steps,), `timestep` a number or a tensor of any shape; both of any real dtype. Pipelines pass the
    scheduler's timesteps to the transformer as they are, or divided by 1000. Where time rises (`time_runs` 1) they are
    counted from the other end. Return None if the timestep is none of these.
    """
    first = timestep
    if isinstance(timestep, Tensor):  # constant entries are 0 if time falls, about 1 if it rises
        first = timestep.max() if time_runs < 0 else timestep.min()
    first = float(first)
    table = timesteps.detach().cpu().to(torch.float64)  # in this order, as MPS has no float64
    indices = []
    for scaled in (first, first * 1000) if time_runs < 0 else (1 - first, 1000 - first, 1000 - first * 1000):
        apart = (table - scaled).abs()
        nearest = int(apart.argmin())
        if apart[nearest] <= 5e-3 * max(1.0, abs(scaled)):
            indices.append(nearest)
    return min(indices, default=None)
