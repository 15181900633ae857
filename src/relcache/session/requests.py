"""Which request, step and branch a call of a transformer is of: reads the call, and asks who makes it.

Knows trackers and schedules; of features and units nothing.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.correctors.sampler import predicts
from relcache.engine.host import Host, count_rows, form_of_arguments
from relcache.engine.patch import Patch
from relcache.engine.state import Request
from relcache.models.origin import Origin
from relcache.schedules.base import Schedule, Setting
from relcache.session.branches import Signs
from relcache.session.caller import Caller, find_caller
from relcache.session.finer import finer_timesteps
from relcache.session.notes import FORECAST_NOT_FINITE, NOT_FINITE, NOTES, ONCE, SILENT
from relcache.session.runs import Run, Runs
from relcache.session.timing import Timing
from relcache.session.tracker import Loop, Placement, Tracker, index_in
from relcache.storage.identity import same_memory


class Arrival(NamedTuple):
    """A call that has been placed: what it shows, the rows of its batch, and where it stands."""

    signs: Signs
    rows: int
    loop: Loop | None
    place: Placement
    begins: bool


class Requests:
    """The requests of one session, those that run at the same time and the present one.

    Args:
        schedule: each request keeps a state of it.
        time_runs: as a spec has it.
        pipeline: the one that was enabled, whose scheduler is looked at where no pipeline runs; kept weakly.
        scheduler: the one that steps a loop written by hand; kept weakly.
        num_inference_steps: steps of each request, where no scheduler tells.
        free_at_end: whether the number of steps has to be known.
        history: full steps that a forecast needs.
        finer: how many times as many steps are made as a scheduler is asked for.
        made_for: the only scheduler that may step.
    """

    def __init__(
        self,
        schedule: Schedule,
        time_runs: int,
        pipeline: Any = None,
        scheduler: Any = None,
        num_inference_steps: int | None = None,
        free_at_end: bool = False,
        history: int = 1,
        finer: int = 1,
        made_for: Origin | None = None,
    ):
        self._finer, self._made_for = finer, made_for
        self._made_finer: Callable[[], Any] = lambda: None
        self._history, self._timing = history, Timing()
        self._schedule, self._time_runs = schedule, time_runs
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self._scheduler = weakref.ref(scheduler) if scheduler is not None else None
        self._num_inference_steps, self._free_at_end = num_inference_steps, free_at_end
        self.context: ContextVar[str | None] = ContextVar("context", default=None)
        self.runs = Runs()
        self._warned: set[str] = set()
        self.run: Run | None = None  # of the call in progress, or of the last

    @property
    def pipeline(self) -> Any:
        """The pipeline that was enabled, None if there is none, or none any longer."""
        return self._pipeline() if self._pipeline is not None else None

    @property
    def scheduler(self) -> Any:
        """The one that was given for a loop, else that of the pipeline that was enabled; None if there is none."""
        return self._scheduler() if self._scheduler is not None else getattr(self.pipeline, "scheduler", None)

    @property
    def all(self) -> list[Run]:
        """All runs that may hold features."""
        others = [run for run in self.runs if run is not self.run]
        return others if self.run is None else [*others, self.run]

    @property
    def last(self) -> Request:
        """The present or last request, an empty one before the first."""
        request = self.run.request if self.run is not None else None
        return request if request is not None else Request(None, None, 0)

    def make_finer(self, patch: Patch) -> None:
        """Let the scheduler make more steps than it is asked for, if that is wanted.

        Raises:
            ValueError: no scheduler is known.
        """
        if self._finer == 1:
            return
        scheduler = self.scheduler
        if not callable(getattr(scheduler, "set_timesteps", None)):
            raise ValueError(
                f"finer={self._finer} needs a scheduler with timesteps: enable the pipeline, or pass scheduler="
            )
        patch.swap(scheduler, "set_timesteps", finer_timesteps(self._finer))
        self._made_finer = weakref.ref(scheduler)

    def arrive(self, host: Host, model: nn.Module, given: dict[str, Any], hooks: tuple[str, ...]) -> Arrival:
        """Place a call; what a request that begins needs is made by `open`.

        Raises:
            ValueError: the call has no timestep.
        """
        if given.get(host.spec.timestep) is None:
            raise ValueError(
                f"{host.model_name} was called without its argument {host.spec.timestep!r}, by which "
                "relcache tells one denoising step from the next"
            )
        signs, rows, caller = self._signs(host, given, hooks), count_rows(given.get(host.sample)), find_caller(model)
        run = self.run = self.runs.of(caller, signs, partial(self._tracker_of, caller))
        loop = self._loop_of(run, caller, signs.timestep)
        place = run.tracker.place(signs, rows, loop, run.request.total_steps if run.request is not None else None)
        begins = place.new_request or run.request is None
        if begins:
            for over in (run, *self.runs.prune(run)):
                self.check_numbers(over)
        return Arrival(signs, rows, loop, place, begins)

    def open(self, arrival: Arrival, size: Hashable, device: torch.device) -> Request:
        """The request of a call that was placed, with its step opened if it opens one.

        `size` tells calls whose steps take different times, and `device` is where they run.

        Raises:
            ValueError: the number of steps is needed, and not known.
        """
        run, place, loop = self.run, arrival.place, arrival.loop
        assert run is not None
        if arrival.begins:
            run.request, run.size = self._begin(arrival, size), size
        request = run.request
        assert request is not None
        if place.new_step:
            request.open_step()
            cost = self._timing.begin_step(request, run.size, device) if self._schedule.needs_cost else None
            if cost is not None:
                request.schedule_state = self._schedule.with_cost(request.schedule_state, request.step, cost)
                self._note_speed(request, cost)
            if not arrival.begins:
                request.notes.pop("short", None)
            if loop is not None and loop.step_index == -1 and not arrival.begins:
                request.total_steps = None  # the loop steps copies of this scheduler
            if self._schedule.needs_total_steps and request.step == request.setting.total_steps:
                self.note("beyond")
        if place.note is not None:
            self.note(place.note)
            request.total_steps = request.total_steps if place.note != "number" else None
        return request

    def end(self, model: nn.Module) -> Run | None:
        """The present caller's request has ended: nothing of its calls is held any longer."""
        run = self.runs.get(find_caller(model))
        if run is not None:
            run.ended = True
            run.tracker.let_go()
        return run

    def forget(self) -> None:
        """Drop this thread's requests, and their record."""
        self.runs.forget(threading.get_ident())
        self.run = None

    def check_numbers(self, run: Run) -> None:
        """Say so if an output of a request was NaN or infinite. This waits for the device."""
        bad = run.request.first_not_finite() if run.request is not None else None
        if bad is not None:
            step, full = bad
            self.note("numbers", (NOT_FINITE if full else FORECAST_NOT_FINITE).format(step), run)

    def note(self, key: str, text: str | None = None, run: Run | None = None) -> None:
        """Write a note of a run's request, by default the present one's, and warn, once for each request."""
        run = self.run if run is None else run
        if run is None or run.request is None or key in run.request.notes:
            return
        run.request.notes[key] = text = NOTES[key] if text is None else text
        if key not in SILENT and key not in self._warned:
            self._warned |= {key} & ONCE
            warnings.warn(f"relcache: {text}", stacklevel=2)

    def refuse(self, key: str, text: str) -> None:
        """A request begins that is not cached: note why."""
        self.run = Run(None, threading.get_ident(), self._tracker_of(None), Request(None, None, 0))
        self.note(key, text)

    def _tracker_of(self, caller: Caller | None) -> Tracker:
        is_certain = caller is not None and caller.sign is not None
        return Tracker(self._time_runs, is_certain, self._schedule.needs_signal)

    def _signs(self, host: Host, given: dict[str, Any], hooks: tuple[str, ...]) -> Signs:
        """What a call shows of itself. Tensors that a ControlNet gives are read: whether they are zero, as they are
        after its last step, is part of the call's form."""
        spec = host.spec
        sample = [leaf for leaf in tree_leaves(given.get(host.sample)) if isinstance(leaf, Tensor)]
        conditioning = [*tree_leaves([given.get(name) for name in spec.conditioning]), hooks]
        apart = {spec.timestep, host.sample, *spec.conditioning}
        leaves = tree_leaves([value for name, value in given.items() if name not in apart])
        others = [leaf for leaf in leaves if isinstance(leaf, (Tensor, int, float)) and not isinstance(leaf, bool)]
        return Signs(
            given[spec.timestep],
            sample,
            conditioning,
            others,
            form_of_arguments(given, spec.timestep),
            self.context.get(),
        )

    def _begin(self, arrival: Arrival, size: Hashable) -> Request:
        total, loop = self._num_inference_steps, arrival.loop
        if loop is not None:
            index = index_in(loop.timesteps, arrival.signs.timestep, self._time_runs)
            total = len(loop.timesteps) - index if index is not None else None
        schedule = self._schedule
        asks = schedule.needs_total_steps or ("free_at_end" if self._free_at_end else None)
        if asks is not None and total is None:
            raise ValueError(
                f"{asks} needs the number of steps: enable the pipeline instead of the bare transformer, or pass "
                "scheduler= or num_inference_steps= to relcache.enable"
            )
        scheduler = self.run.scheduler() if self.run is not None and self.run.scheduler is not None else None
        if self._made_for is not None and scheduler is not None:
            self._made_for.check_scheduler(scheduler)
        finer = self._finer if scheduler is not None and scheduler is self._made_finer() else 1
        setting = Setting(total, predicts(scheduler), self._history, self._timing.cost(size), finer)
        request = Request(schedule.start(setting), total, arrival.rows, setting)
        remark = schedule.remark(total) if total is not None else None
        if remark is not None:
            request.notes["steps"] = remark
        self._note_speed(request, setting.cost)
        return request

    def _note_speed(self, request: Request, cost: float | None) -> None:
        """Note where a speed cannot be reached at this cost of a cached step."""
        short = self._schedule.short_of_speed(request.setting._replace(cost=cost))
        if short is not None:
            request.notes["speed"] = short

    def _loop_of(self, run: Run, caller: Caller, timestep: Any) -> Loop | None:
        """What the scheduler of a caller shows."""
        scheduler = self._scheduler_of(caller, timestep)
        run.pipeline, run.scheduler = reference(caller.pipeline), reference(scheduler)
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, Tensor) or not timesteps.numel():
            return None
        index = getattr(scheduler, "step_index", None)
        if index is None and hasattr(scheduler, "step_index"):
            index = -1
        if run.loop is None or run.loop.timesteps is not timesteps:
            run.loop = Loop(timesteps, index, len(torch.unique(timesteps)) < len(timesteps))
        return run.loop._replace(step_index=index)

    def _scheduler_of(self, caller: Caller, timestep: Any) -> Any:
        """The scheduler of the pipeline that runs, else the one that was given, else that of the pipeline that was
        enabled, where the timestep is an entry of its table."""
        if caller.pipeline is not None:
            return getattr(caller.pipeline, "scheduler", None)
        if self._scheduler is not None:
            return self._scheduler()
        scheduler = getattr(self.pipeline, "scheduler", None)
        return scheduler if same_memory(getattr(scheduler, "timesteps", None), timestep) else None


def reference(value: Any) -> weakref.ref[Any] | None:
    """A weak reference to `value`; None where there is nothing, or nothing that can be referred to."""
    try:
        hash(value)
        return weakref.ref(value) if value is not None else None
    except TypeError:
        return None
