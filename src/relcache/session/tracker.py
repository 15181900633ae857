"""Tells requests and denoising steps apart from the calls of a transformer by one caller.

Knows nothing of forecasts or schedules. Where a pipeline runs, its own call is the request, and its scheduler counts
the steps. A loop written by hand is followed by its timesteps, and by its sample where these could be another loop's.
Where nothing tells two loops apart, nothing of the one is used for the other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relcache.session.branches import Branches, Known, Signs
from relcache.storage.identity import (
    FAR,
    NEAR,
    Snapshot,
    are_equal,
    difference,
    distance,
    is_entry,
    last_entry,
    same_memory,
    snapshot,
    varies,
    version_of,
    waits,
    weakened,
)

MANY = 3  # requests of one step in a row, from which on it is said that they are


class Placement(NamedTuple):
    """Where a call stands: whether it opens a request, whether it opens a step, and the name of its branch.

    The branch is None where nothing tells the call from an earlier one of the step: it is computed in full. `note` is
    the key of what is to be told about it, if anything, and `forgotten` a branch that there is no room for any longer.
    """

    new_request: bool
    new_step: bool
    branch: str | None
    note: str | None = None
    forgotten: str | None = None


class Loop(NamedTuple):
    """What a scheduler shows of the sampling loop.

    Attributes:
        timesteps: the tensor of timesteps, which is replaced whenever a request begins.
        step_index: the scheduler's own count of its steps, -1 before the first, None where it does not count.
        repeats: whether a timestep occurs twice, as with schedulers of the second order.
    """

    timesteps: Any
    step_index: int | None = None
    repeats: bool = False


class Tracker:
    """Follows the calls of one caller.

    Args:
        time_runs: -1 where the timestep falls as sampling goes on, 1 where it rises.
        is_certain: whether the calls are of one loop for certain: of one run of a pipeline, or named.
        has_signal: whether an error that all branches share decides, so that no other loop may be among them.
    """

    def __init__(self, time_runs: int, is_certain: bool = False, has_signal: bool = False):
        self._time_runs, self._is_certain, self._has_signal = time_runs, is_certain, has_signal
        self._short_in_a_row = 0  # requests of one step
        self._suspects = False  # whether a loop was left in the middle of its table, and may go on
        self.reset()

    def reset(self) -> None:
        """The next call opens a request."""
        self._branches = Branches()
        self._timestep: Snapshot | None = None
        self._snapshot: Any = None  # the timestep's content, which outlives changes in place
        self._sample: list[Snapshot] = []  # of the last call
        self._memory_runs: int | None = None  # whether time goes up (1) or down (-1) the table of timesteps
        self._proven = False  # whether the present call's timestep is the next one of the same table
        self._moved = 0.0  # most that the sample has moved from one step to the next
        self._loop: Loop | None = None
        self._rows = 0
        self._step = 0

    def let_go(self) -> None:
        """Hold no tensors of calls any longer: features are dropped, or the request has ended."""
        self._branches.let_go()
        self._sample = [weakened(seen) for seen in self._sample]

    def place(self, signs: Signs, rows: int, loop: Loop | None, total_steps: int | None) -> Placement:
        """Place a call.

        Args:
            signs: what it shows of itself.
            rows: size of the batch.
            loop: what the scheduler of the caller shows, or None.
            total_steps: number of steps of the present request, if it is known.
        """
        if self._timestep is None:
            return self._open_request(signs, rows, loop)
        past = self._loop
        if past is not None and (loop is None or loop.timesteps is not past.timesteps):
            return self._open_request(signs, rows, loop)
        alike = self._branches.alike(signs)
        branch, is_far = self._branches.choose(signs, alike)
        served = branch is not None and branch.served
        ticked = loop is not None and past is not None and loop.step_index != past.step_index
        certain = self._is_certain
        if not certain and self._is_another_table(signs.timestep, served, rows):
            return self._open_request(signs, rows, loop)
        counts = loop is not None and loop.step_index is not None
        move = self._movement(signs.timestep, served and loop is not None and (ticked or not counts))
        over = total_steps is not None and served and self._step + 1 >= total_steps
        if (move is not None and move < 0) or (over and (ticked or (loop is None and move == 0))):
            return self._open_request(signs, rows, loop)
        if move == 0 and not (served and loop is not None and (loop.repeats or ticked)):
            return self._same_step(signs, rows, loop, branch, is_new=not alike or (is_far and certain), certain=certain)
        if not certain and (self._suspects or not self._proven or not waits(signs.sample)):
            moved = distance(branch.sample if branch is not None else self._sample, signs.sample)
            grown = self._proven and math.isinf(moved)  # one table, and samples of another size
            if moved > self._farthest and not grown:
                went_on = self._step > 0
                place = self._open_request(signs, rows, loop)
                return place._replace(note=place.note or ("jump" if alike and not over and went_on else None))
            self._moved = max(self._moved, moved)
        self._branches.open_step()
        self._step += 1
        note = "number" if over and loop is None else None
        if alike and branch is None and not (is_far and certain):
            return self._placed(signs, rows, loop, True, None, "repeated")
        return self._placed(signs, rows, loop, True, branch or self._branches.add(signs), note)

    def follows(self, signs: Signs) -> bool:
        """Whether a call may well be the next of this loop: of its present step, or of the one that comes then."""
        if self._timestep is None:
            return False
        branch, _ = self._branches.choose(signs, self._branches.alike(signs))
        move = self._movement(signs.timestep, False)
        if move == 0:
            return (branch is None or not branch.served) and distance(self._sample, signs.sample) == 0
        return (
            bool(move and move > 0) and branch is not None and distance(branch.sample, signs.sample) <= self._farthest
        )

    @property
    def _farthest(self) -> float:
        """How far the sample may move from one step to the next, before another loop is supposed.

        In few steps it moves far. The next entry of the same table is proof enough, until a sample moves far that has
        moved little before.
        """
        if self._proven and not self._step:
            return math.inf
        farthest = max(NEAR, 2 * self._moved)
        return farthest if self._proven else min(farthest, FAR)

    def _open_request(self, signs: Signs, rows: int, loop: Loop | None) -> Placement:
        self._suspects = self._suspects or self._is_in_the_middle
        self._short_in_a_row = self._short_in_a_row + 1 if self._step == 0 and self._timestep is not None else 0
        self.reset()
        self._branches = Branches()
        note = "short" if self._short_in_a_row >= MANY else None
        return self._placed(signs, rows, loop, True, self._branches.add(signs), note)._replace(new_request=True)

    def _same_step(
        self, signs: Signs, rows: int, loop: Loop | None, branch: Known | None, is_new: bool, certain: bool
    ) -> Placement:
        """The timestep stands: the step's call for another branch, one that comes again, or another loop's."""
        if is_new:
            if not certain and distance(self._sample, signs.sample) > 0:
                # a branch of this request from its beginning on, whose sample differs; else another loop's first call
                named = signs.context is not None and not self._branches.has_context(signs.context)
                if self._step or (self._has_signal and not named):
                    return self._open_request(signs, rows, loop)
            return self._placed(signs, rows, loop, False, self._branches.add(signs))
        if branch is not None and not branch.served:
            return self._placed(signs, rows, loop, False, branch)
        if branch is not None:
            apart = distance(branch.sample, signs.sample)
            if apart == 0 and not certain and self._step == 0:
                return self._open_request(signs, rows, loop)  # broken off in its first step, and begun again
            differs = not are_equal(branch.others, signs.others)
            if (differs and (certain or apart == 0)) or (certain and apart > NEAR):
                return self._placed(signs, rows, loop, False, self._branches.add(signs))
            branch.trusted = False
        return self._placed(signs, rows, loop, False, None, "repeated" if certain else "again")

    def _placed(
        self, signs: Signs, rows: int, loop: Loop | None, new_step: bool, branch: Known | None, note: str | None = None
    ) -> Placement:
        """Remember the call, and say where it stands."""
        self._timestep, self._loop, self._rows = snapshot(signs.timestep), loop, rows
        self._snapshot = signs.timestep.clone() if isinstance(signs.timestep, Tensor) else signs.timestep
        self._sample = [snapshot(value) for value in signs.sample]
        if branch is None:
            return Placement(False, new_step, None, note)
        branch.serve(signs)
        forgotten = self._branches.forget_oldest()
        return Placement(False, new_step, branch.name if branch.trusted else None, note, forgotten)

    def _is_another_table(self, timestep: Any, served: bool, rows: int) -> bool:
        """Whether another table of timesteps shows that a loop was broken off and a second one has begun.

        A loop that copies its table for each call goes on at the copy's next entry; a second loop begins elsewhere, or
        at the same place with another timestep. Both stand at the first entry if the first loop made one step only:
        then the same branch again, or another size of batch, tells.
        """
        assert self._timestep is not None
        past = self._timestep.value
        if not (is_entry(timestep) and is_entry(past)) or same_memory(timestep, past):
            return False
        moved = timestep.storage_offset() - past.storage_offset()
        if moved:
            return bool(moved < 0 or moved > 1)
        if not varies(timestep):
            return False  # a piece of a batch's timesteps, made anew for each call
        first = self._step == 0 and (served or rows != self._rows)
        return first or difference(timestep, self._snapshot) != 0

    def _movement(self, timestep: Any, same_request: bool) -> int | None:
        """1 where the timestep has moved on, 0 where it stands, -1 where it has gone back.

        None where that would wait for the device although the caller knows enough: the request goes on (`same_request`)
        and the branch comes again, so that the step does not.
        """
        assert self._timestep is not None
        past = self._timestep.value
        memory, self._proven = 0, False
        if same_memory(timestep, past) and self._is_unchanged(timestep):
            memory = timestep.storage_offset() - past.storage_offset()
            if memory == 0:
                return 0
            self._proven = abs(memory) == 1
            if self._memory_runs is not None:
                return sign(memory) * self._memory_runs
        elif same_request and isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            return None
        move = sign(difference(timestep, self._snapshot)) * self._time_runs
        if memory and move:
            self._memory_runs = sign(memory) * move
        elif self._proven:  # two entries of one value, as with schedulers of the second order
            return 1
        return move

    @property
    def _is_in_the_middle(self) -> bool:
        """Whether the last timestep was an entry of a table, and not its last."""
        past = self._timestep.value if self._timestep is not None else None
        if not isinstance(past, Tensor) or not is_entry(past):
            return False
        ends = {0: (0, last_entry(past)), 1: (last_entry(past),), -1: (0,)}
        return past.storage_offset() not in ends[self._memory_runs or 0]

    def _is_unchanged(self, timestep: Tensor) -> bool:
        assert self._timestep is not None
        version = version_of(timestep)
        return version == self._timestep.version and (version is not None or is_entry(timestep))


def sign(number: Any) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def index_in(timesteps: Tensor, timestep: Any, time_runs: int) -> int | None:
    """Place of a request's first timestep among the scheduler's, which is not 0 where a picture is only reworked.

    Pipelines hand the scheduler's timesteps to the transformer as they are or divided by 1000, and where time rises
    (`time_runs` 1) counted from the other end. None where it is none of these.
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
    return min(near, default=None)
