"""Joins the scheduler's updates: whose request one is of, and which gap it opens, continues or ends.

Knows correctors by their base class, and schedulers by their interface.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relcache.correctors import Corrector, Gap, Known, Link
from relcache.correctors.sampler import Update, sample_of, take_state, twin_of, update_of
from relcache.engine.patch import Patch, goes_to
from relcache.engine.state import Request
from relcache.session.caller import find_caller
from relcache.session.requests import Requests, reference
from relcache.session.runs import Run
from relcache.storage.identity import weak_snapshot

OTHER_CALLS = "gap ends with calls of another kind: not corrected"
OTHER_SHAPE = "gap in which the sample changed its shape: not corrected"
REPLACED = "gap in which the pipeline replaced the sample: not corrected"
OFF = {
    "random": "the scheduler draws random numbers in each update, so gaps between full steps are not corrected",
    "latents": (
        "the scheduler's updates take more tensors of the sample's shape than the sample, so gaps between full steps "
        "are not corrected"
    ),
    "twice": (
        "one scheduler made several updates after one call of the transformer, so gaps between full steps are not "
        "corrected"
    ),
    "replaced": "other code has replaced scheduler.step, so gaps between full steps are not corrected",
    "failed": "the scheduler's updates could not be repeated ({}), so gaps between full steps are not corrected",
    "unlike": "the scheduler's step does not take its arguments by name, so gaps between full steps are not corrected",
}
NO_UPDATE = (
    "no update by a scheduler was seen, so gaps between full steps are not corrected: enable the pipeline, or pass the "
    "scheduler= that the loop steps"
)

OVERWRITTEN = "between two updates the pipeline overwrote up to {:.1%} of the sample, which is not corrected"


class Correction:
    """Corrects the gaps of one session's requests at the scheduler's updates.

    Args:
        corrector: how a gap is made good; None leaves all as it is.
        requests: those of the session.
    """

    def __init__(self, corrector: Corrector | None, requests: Requests):
        self.corrector, self._requests = corrector, requests
        self._joined = Patch()
        self._schedulers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_attached = False

    def watch(self, run: Run) -> None:
        """A run's transformer has been called, and its scheduler will go on with the output."""
        self.join(run.scheduler() if run.scheduler is not None else None)

    def join(self, scheduler: Any) -> None:
        """See the updates of a scheduler, and of deep copies that are made of it from now on."""
        if self.corrector is None:
            return
        self._is_attached = True
        can_be = reference(scheduler) is not None and callable(getattr(scheduler, "step", None))
        if can_be and scheduler not in self._schedulers and not goes_to(scheduler, "step", self._step):
            self._schedulers.add(scheduler)
            self._joined.swap(scheduler, "step", self._step, in_copies=True)

    def suspend(self) -> Callable[[], None]:
        """Leave all schedulers; the function returned joins them again."""
        resume_joined = self._joined.suspend()
        self._is_attached = False

        def resume() -> None:
            resume_joined()
            self._is_attached = True

        return resume

    def let_go(self) -> None:
        """Leave all schedulers."""
        self._is_attached = False
        self._joined.restore()
        self._schedulers.clear()

    def remark(self, request: Request) -> None:
        """Note in a request's record where its gaps could not be corrected as they are."""
        if self.corrector is None:
            return
        if request.has_gaps and not request.updates and not request.uncorrected:
            request.notes["correction"] = NO_UPDATE
        if any(share < 1 for share in request.kept):
            request.notes["overwritten"] = OVERWRITTEN.format(1 - min(request.kept))

    # One update

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        scheduler = getattr(original, "__self__", None)
        run = self._run_of(scheduler) if self._is_attached else None
        if run is None or run.request is None or run.request.uncorrected:
            return original(*args, **kwargs)
        request = run.request
        update = update_of(original, args, kwargs)
        problem = _problem(original, scheduler, update, request)
        if problem is not None:
            self._leave(problem, run, request)
        if update is None or request.uncorrected:
            return original(*args, **kwargs)
        request.updates += 1
        gap = request.gaps.get(scheduler, Gap())
        if gap.is_open:
            gap = _handed(gap, update.sample, request)
        if request.is_exact:
            return self._end(gap, update, scheduler, run, request, original)
        if gap.is_open or gap.known:
            return self._go_on(gap, update, scheduler, run, request, original)
        return original(*args, **kwargs)

    def _run_of(self, scheduler: Any) -> Run | None:
        """The run that an update is of: of the pipeline that makes it, or the last loop that has this scheduler."""
        caller = find_caller()
        if caller.pipeline is not None:
            run = self._requests.runs.get(caller)
            is_its_own = run is not None and run.pipeline is not None and run.pipeline() is caller.pipeline
            return run if is_its_own else None
        mine = [run for run in self._requests.runs if run.pipeline is None and run.thread == caller.thread]
        return next((run for run in reversed(mine) if run.scheduler and scheduler in (None, run.scheduler())), None)

    def _go_on(
        self, gap: Gap, update: Update, scheduler: Any, run: Run, request: Request, original: Callable[..., Any]
    ) -> Any:
        """The update of a cached step."""
        if gap.known[0].calls != frozenset(request.calls):
            request.fallbacks[OTHER_CALLS] += 1
            del request.gaps[scheduler]
            return update.by(original)
        if not gap.is_open:
            gap = replace(gap, before=twin_of(scheduler), sample=update.sample.clone())
        states = update.random_states()
        returned = update.by(original)
        if not all(map(torch.equal, states, update.random_states())):
            self._leave("random", run, request)
            return returned
        result = sample_of(returned)
        if result is None:
            self._leave("unlike", run, request)
            return returned
        request.gaps[scheduler] = gap.with_link(
            Link(request.step, update.others, result.clone(), weak_snapshot(result))
        )
        return returned

    def _end(
        self, gap: Gap, update: Update, scheduler: Any, run: Run, request: Request, original: Callable[..., Any]
    ) -> Any:
        """The update of a full step: what came before it is made good."""
        assert self.corrector is not None
        calls = frozenset(request.calls)
        if gap.is_open and not gap.known[0].fits(calls, update.output):
            request.fallbacks[OTHER_CALLS] += 1
        elif gap.is_open and (kept := gap.kept()) is not None and not min(kept):
            request.fallbacks[REPLACED] += 1
        elif gap.is_open:
            request.kept += kept or []
            update = self._correct(gap, update, scheduler, run, request)
        full = Known(request.step, update.output.clone(), calls)
        if not request.uncorrected:
            request.gaps[scheduler] = gap.closed(full, self.corrector.full_steps_needed)
        return update.by(original)

    def _correct(self, gap: Gap, update: Update, scheduler: Any, run: Run, request: Request) -> Update:
        """The update at a gap's end, with the sample and output that the gap should have led to."""
        assert self.corrector is not None
        try:
            corrected = self.corrector.correct(gap, request.step, update, scheduler)
        except Exception as error:  # it was a copy of the scheduler that failed: the request goes on as it was
            self._leave("failed", run, request, f"{type(error).__name__}: {error}")
            return update
        take_state(scheduler, corrected.scheduler)
        request.corrections.append((request.step, relative_size(corrected.sample, update.sample)))
        return update._replace(output=corrected.output, sample=corrected.sample)

    def _leave(self, problem: str, run: Run, request: Request, reason: str = "") -> None:
        """From here on this request goes on uncorrected."""
        request.uncorrected = True
        request.gaps.clear()
        self._requests.note("correction", OFF[problem].format(reason), run)


def _problem(original: Callable[..., Any], scheduler: Any, update: Update | None, request: Request) -> str | None:
    """Why the request cannot be corrected, a key of `OFF`; None if it can."""
    if scheduler is None or getattr(original, "__func__", None) is not getattr(type(scheduler), "step", None):
        return "replaced"
    if update is None:
        return "unlike"
    if update.takes_more_samples:
        return "latents"
    gap = request.gaps.get(scheduler)
    return "twice" if gap is not None and gap.last_step == request.step else None


def _handed(gap: Gap, sample: Tensor, request: Request) -> Gap:
    """The gap, with what its last update's result has become by the next one."""
    last = gap.links[-1]
    assert last.result is not None
    if last.result.shape != sample.shape:
        request.fallbacks[OTHER_SHAPE] += 1
        return Gap()
    if last.returned is not None and last.returned.is_still(sample):
        return gap.with_handed(sample, None)
    return gap.with_handed(sample, sample == last.result.to(sample.dtype))


def relative_size(corrected: Tensor, sample: Tensor) -> Tensor:
    """‖corrected - sample‖₂ / ‖sample‖₂, mean over the batch, a scalar on the device."""
    moved, whole = (value.float().flatten(1).norm(dim=1) for value in (corrected - sample, sample))
    return (moved / whole).mean()
