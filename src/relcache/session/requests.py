"""Find the request, step and branch of each call of a transformer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relcache.correctors.sampler import predicts
from relcache.engine.clock import Clock
from relcache.engine.host import Host, count_rows, form_of_arguments
from relcache.engine.patch import Patch
from relcache.engine.ranks import ALONE, Ranks
from relcache.engine.state import Request, Rules
from relcache.method import Method
from relcache.schedules.base import Setting
from relcache.session.branches import Loop, Signs
from relcache.session.caller import Caller, Named, begin_named, find_caller, method_in_context
from relcache.session.finer import finer_timesteps
from relcache.session.notes import FORECAST_NOT_FINITE, NOT_FINITE, NOTES, ONCE, SILENT
from relcache.session.runs import Run, Runs
from relcache.session.timing import Timing
from relcache.session.tracker import Position, Tracker, index_in
from relcache.storage.identity import same_memory
from relcache.warning import warn


class Options(NamedTuple):
    """Options of `relcache.enable` besides the method.

    Attributes:
        num_inference_steps: steps of each request, if no scheduler is known.
        free_at_end: whether a branch's features are dropped at the end of its last step.
        fixed: names of the fields of `Way` that a memory limit must not change.
        ranks: processes that take the same full steps, as far as the user passed them.
    """

    num_inference_steps: int | None = None
    free_at_end: bool = False
    fixed: frozenset[str] = frozenset()
    ranks: Ranks = ALONE


class Requests:
    """The requests of one session.

    Args:
        method: its schedule has a state for each request.
        options: those of the session.
        time_runs: as in the spec.
        pipeline: the enabled pipeline, referenced weakly. Its scheduler is read when no pipeline runs.
        scheduler: the scheduler of a hand-written loop, referenced weakly.
    """

    def __init__(self, method: Method, options: Options, time_runs: int, pipeline: Any = None, scheduler: Any = None):
        self._method, self._options, self._time_runs = method, options, time_runs
        self._made_finer: Callable[[], Any] = lambda: None
        self._timing, self.ranks = Timing(), ALONE
        self._pipeline = weakref.ref(pipeline) if pipeline is not None else None
        self._scheduler = weakref.ref(scheduler) if scheduler is not None else None
        self.context: ContextVar[str | None] = ContextVar("context", default=None)
        self.runs = Runs()
        self._begun: Named | None = None
        self._warned: set[str] = set()
        self.run: Run | None = None  # of the present or last call

    @property
    def pipeline(self) -> Any:
        """The enabled pipeline; None if there is none, or it has been deleted."""
        return self._pipeline() if self._pipeline is not None else None

    @property
    def scheduler(self) -> Any:
        """The scheduler passed for a loop, else that of the enabled pipeline; None if there is none."""
        return self._scheduler() if self._scheduler is not None else getattr(self.pipeline, "scheduler", None)

    @property
    def all(self) -> list[Run]:
        """All runs that may have cached features."""
        others = [run for run in self.runs if run is not self.run]
        return others if self.run is None else [*others, self.run]

    @property
    def last(self) -> Request:
        """The present or last request; an empty one before the first."""
        request = self.run.request if self.run is not None else None
        return request if request is not None else self._empty()

    def make_finer(self, patch: Patch) -> None:
        """Let the scheduler make `finer` times as many steps as requested.

        Raises:
            ValueError: no scheduler is known.
        """
        finer = self._method.finer
        if finer == 1:
            return
        scheduler = self.scheduler
        if not callable(getattr(scheduler, "set_timesteps", None)):
            raise ValueError(f"finer={finer} needs a scheduler with timesteps: enable the pipeline, or pass scheduler=")
        patch.swap(scheduler, "set_timesteps", finer_timesteps(finer))
        self._made_finer = weakref.ref(scheduler)

    def locate(
        self, host: Host, model: nn.Module, arguments: dict[str, Any], hooks: tuple[str, ...]
    ) -> tuple[Signs, Position]:
        """Return the signs of a call, and its position. `open` then begins a new request, if needed.

        Raises:
            ValueError: the call has no timestep.
        """
        if arguments.get(host.spec.timestep) is None:
            raise ValueError(
                f"{host.model_name} was called without its argument {host.spec.timestep!r}, which identifies the "
                "denoising step: pass it"
            )
        signs, caller = self._signs(host, arguments, hooks), find_caller(self, model)
        method = method_in_context(self) or self._method
        run = self.run = self.runs.of(caller, signs, partial(self._tracker_of, caller, method))
        run.method = method
        signs = signs._replace(loop=self._loop_of(run, caller, signs.timestep))
        position = run.tracker.locate(signs, run.request.total_steps if run.request is not None else None)
        position = position._replace(new_request=position.new_request or run.request is None)
        if position.new_request:
            for ended in (run, *self.runs.prune(run)):
                self.check_numbers(ended)
        return signs, position

    def open(self, signs: Signs, position: Position, size: Hashable, device: torch.device) -> Request:
        """Return the request of a call; open a new request or step if the call begins one.

        `size` differs between calls with steps of different durations; `device` runs them.

        Raises:
            ValueError: the number of steps is needed, but unknown.
        """
        run = self.run
        assert run is not None
        if position.new_request:
            run.request, run.size = self._begin(signs, run, size, device), size
        request = run.request
        assert request is not None
        if position.new_step:
            request.open_step()
            self._learn_cost(request, run)
            if not position.new_request:
                request.notes.pop("short", None)
            if signs.loop is not None and signs.loop.step_index == -1 and not position.new_request:
                request.total_steps = None  # the loop uses copies of this scheduler
            if request.rules.schedule.needs_total_steps and request.step == request.setting.total_steps:
                self.note("beyond")
        if position.note is not None:
            self.note(position.note)
            request.total_steps = request.total_steps if position.note != "number" else None
        return request

    @contextmanager
    def in_context(self, name: str) -> Iterator[None]:
        """Name the guidance branch of the calls in this context."""
        token = self.context.set(name)
        try:
            yield
        finally:
            self.context.reset(token)

    def open_uncached(self, key: str, text: str) -> None:
        """Begin an uncached request, and note why."""
        self.run = Run(None, threading.get_ident(), self._tracker_of(None, self._method), self._empty())
        self.note(key, text)

    def end(self, model: nn.Module) -> Run | None:
        """End the present caller's request, and release the tensors of its calls. Return its run, or None."""
        run = self.runs.get(find_caller(self, model))
        if run is not None:
            run.ended = True
            run.tracker.release()
        return run

    def begin(self, num_inference_steps: int | None) -> None:
        """Begin a request of this thread, with so many steps if its scheduler shows none."""
        self._options = self._options._replace(num_inference_steps=num_inference_steps)
        self._begun = begin_named(self, self._begun)

    def forget(self) -> None:
        """Drop this thread's requests and their records."""
        self.runs.remove(threading.get_ident())
        self.run = None

    def check_numbers(self, run: Run | None) -> None:
        """Add a note if an output of a run's request was NaN or infinite. Waits for the device."""
        bad = run.request.first_not_finite() if run is not None and run.request is not None else None
        if bad is not None:
            step, full = bad
            self.note("numbers", (NOT_FINITE if full else FORECAST_NOT_FINITE).format(step), run)

    def note(self, key: str, text: str | None = None, run: Run | None = None) -> None:
        """Add a note to the request of a run, by default the present one, and warn; once per request and key."""
        run = self.run if run is None else run
        if run is None or run.request is None or key in run.request.notes:
            return
        run.request.notes[key] = text = NOTES[key] if text is None else text
        if key not in SILENT and key not in self._warned:
            self._warned |= {key} & ONCE
            warn(f"relcache: {text}")

    def share(self, ranks: Ranks) -> None:
        """Let all requests take the same full steps as other processes; their features are to be dropped."""
        self.ranks = ranks
        for run in self.all:
            if run.request is not None and run.method is not None:
                run.request.ranks, run.request.rules = ranks, self.rules_of(run.method)

    def rules_of(self, method: Method) -> Rules:
        """Return the parts of `method` that a request follows.

        Raises:
            ValueError: its forecaster cannot be used where each process has some of the tokens.
        """
        forecaster, tokens = method.forecaster, self.ranks.tokens
        if tokens is not None:
            forecaster = forecaster.across(tokens.gather)
        return Rules(forecaster, method.schedule, method.corrector, method.name)

    def _empty(self) -> Request:
        return Request(self.rules_of(self._method), None, None, 0)

    def _tracker_of(self, caller: Caller | None, method: Method) -> Tracker:
        is_certain = caller is not None and caller.key is not None
        return Tracker(self._time_runs, is_certain, method.schedule.needs_signal)

    def _signs(self, host: Host, arguments: dict[str, Any], hooks: tuple[str, ...]) -> Signs:
        """Return the signs of a call. This reads a ControlNet's tensors, which are zero after its last step."""
        spec, sample = host.spec, arguments.get(host.sample)
        separate = {spec.timestep, host.sample, *spec.conditioning}
        leaves = tree_leaves([value for name, value in arguments.items() if name not in separate])
        return Signs(
            timestep=arguments[spec.timestep],
            sample=[leaf for leaf in tree_leaves(sample) if isinstance(leaf, Tensor)],
            rows=count_rows(sample),
            conditioning=[*tree_leaves([arguments.get(name) for name in spec.conditioning]), hooks],
            others=[leaf for leaf in leaves if isinstance(leaf, (Tensor, int, float)) and not isinstance(leaf, bool)],
            form=form_of_arguments(arguments, spec.timestep),
            context=self.context.get(),
        )

    def _begin(self, signs: Signs, run: Run, size: Hashable, device: torch.device) -> Request:
        assert run.method is not None
        rules, total, made_for = self.rules_of(run.method), self._options.num_inference_steps, run.method.made_for
        schedule = rules.schedule
        if signs.loop is not None:
            index = index_in(signs.loop.timesteps, signs.timestep, self._time_runs)
            total = len(signs.loop.timesteps) - index if index is not None else total
        option = schedule.needs_total_steps or ("free_at_end" if self._options.free_at_end else None)
        if option is not None and total is None:
            raise ValueError(
                f"{option} needs the number of steps: enable the pipeline instead of the bare transformer, or pass "
                "scheduler= or num_inference_steps= to relcache.enable"
            )
        scheduler = run.scheduler() if run.scheduler is not None else None
        if made_for is not None and scheduler is not None:
            made_for.check_scheduler(scheduler)
        finer = self._method.finer if scheduler is not None and scheduler is self._made_finer() else 1
        history = rules.forecaster.full_steps_needed
        cost = self._timing.cost((rules.name, size))
        if schedule.needs_cost:
            cost = self.ranks.mean_known(cost, 0, device)
        setting = Setting(total, predicts(scheduler), history, cost, finer)
        state, has_cost = schedule.start(setting), cost is not None
        request = Request(
            rules,
            state,
            total,
            signs.rows,
            setting,
            self.ranks,
            device,
            has_cost,
            clock=Clock(schedule.needs_cost and not has_cost),
        )
        if total is not None and (remark := schedule.remark(total)) is not None:
            request.notes["steps"] = remark
        self._note_speed(request, setting.cost)
        return request

    def _learn_cost(self, request: Request, run: Run) -> None:
        """Tell the schedule the cost of a cached step when it is first known."""
        schedule = request.rules.schedule
        if not schedule.needs_cost or request.has_cost:
            return
        measured = self._timing.measure(request, (request.rules.name, run.size))
        cost = self.ranks.mean_known(measured, request.step, request.device)
        if cost is not None:
            request.has_cost = True
            request.schedule_state = schedule.with_cost(request.schedule_state, request.step, cost)
            self._note_speed(request, cost)

    def _note_speed(self, request: Request, cost: float | None) -> None:
        """Add a note if the speed cannot be reached at this cost of a cached step."""
        if (remark := request.rules.schedule.short_of_speed(request.setting._replace(cost=cost))) is not None:
            request.notes["speed"] = remark

    def _loop_of(self, run: Run, caller: Caller, timestep: Any) -> Loop | None:
        """Return the state of a caller's loop from its scheduler; None if there are no timesteps."""
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
        """Return the scheduler of the running pipeline, else the one passed to `enable`.

        Without these, return the enabled pipeline's scheduler if the timestep is an entry of its table.
        """
        if caller.pipeline is not None:
            return getattr(caller.pipeline, "scheduler", None)
        if self._scheduler is not None:
            return self._scheduler()
        scheduler = getattr(self.pipeline, "scheduler", None)
        return scheduler if same_memory(getattr(scheduler, "timesteps", None), timestep) else None


def reference(value: Any) -> weakref.ref[Any] | None:
    """Return a weak reference to `value`; None if `value` is None or does not allow one."""
    try:
        hash(value)
        return weakref.ref(value) if value is not None else None
    except TypeError:
        return None
