"""Correct gaps at the scheduler's updates: find the request of an update, and the gap that it opens or ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relcache.correctors import Gap, Known, Link
from relcache.correctors.sampler import Update, sample_of, take_state, twin_of, update_of
from relcache.engine.patch import Patch, is_swapped
from relcache.engine.state import Request
from relcache.session.caller import find_caller
from relcache.session.requests import Requests, reference
from relcache.session.runs import Run
from relcache.storage.identity import snapshot

OTHER_CALLS = "gap ends with calls of another kind: not corrected"
OTHER_SHAPE = "gap in which the sample changed its shape: not corrected"
REPLACED = "gap in which the pipeline replaced the sample: not corrected"
UNCORRECTED = "gaps between full steps are not corrected"
OFF = {
    "random": "the scheduler draws random numbers in each update",
    "latents": "the scheduler's updates take more tensors of the sample's shape than the sample",
    "twice": "one scheduler made several updates after one call of the transformer",
    "replaced": "other code has replaced scheduler.step",
    "failed": "the scheduler's updates could not be repeated ({})",
    "unlike": "scheduler.step does not take its arguments by name",
}
NO_UPDATE = (
    f"no scheduler made an update, so {UNCORRECTED}: enable the pipeline, or pass the scheduler= that the loop steps"
)
OVERWRITTEN = "between two updates the pipeline overwrote up to {:.1%} of the sample, which is not corrected"


class Correction:
    """Corrects the gaps of one session's requests at the scheduler's updates.

    Args:
        is_wanted: whether a method corrects gaps; updates are intercepted only then.
        requests: those of the session; each has a corrector, or none.
    """

    def __init__(self, is_wanted: bool, requests: Requests):
        self.is_wanted, self._requests = is_wanted, requests
        self._patch = Patch()
        self._schedulers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_attached = False

    def attach(self, scheduler: Any) -> None:
        """Intercept the updates of a scheduler and of its future deep copies."""
        if not self.is_wanted:
            return
        self._is_attached = True
        can_attach = reference(scheduler) is not None and callable(getattr(scheduler, "step", None))
        if can_attach and scheduler not in self._schedulers and not is_swapped(scheduler, "step", self._step):
            self._schedulers.add(scheduler)
            self._patch.swap(scheduler, "step", self._step, in_copies=True)

    def suspend(self) -> Callable[[], None]:
        """Detach from all schedulers, and return a function that attaches to them again."""
        resume_patch = self._patch.suspend()
        self._is_attached = False

        def resume() -> None:
            resume_patch()
            self._is_attached = True

        return resume

    def detach(self) -> None:
        """Detach from all schedulers."""
        self._is_attached = False
        self._patch.restore()
        self._schedulers.clear()

    def remark(self, request: Request) -> None:
        """Add notes to a request with gaps that could not be corrected."""
        if request.rules.corrector is None:
            return
        if request.has_gaps and not request.updates and not request.uncorrected:
            request.notes["correction"] = NO_UPDATE
        if any(share < 1 for share in request.kept):
            request.notes["overwritten"] = OVERWRITTEN.format(1 - min(request.kept))

    # One update

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        scheduler = getattr(original, "__self__", None)
        run = self._run_of(scheduler) if self._is_attached else None
        request = run.request if run is not None else None
        if run is None or request is None or request.rules.corrector is None or request.uncorrected:
            return original(*args, **kwargs)
        update = update_of(original, args, kwargs)
        problem = _problem(original, scheduler, update, request)
        if problem is not None:
            self._give_up(problem, run, request)
        if update is None or request.uncorrected:
            return original(*args, **kwargs)
        request.updates += 1
        gap = request.gaps.get(scheduler, Gap())
        if gap.is_open:
            gap = _with_sample(gap, update.sample, request)
        if request.is_exact:
            return self._end_gap(gap, update, scheduler, run, request).apply(original)
        if gap.is_open or gap.known:
            return self._extend_gap(gap, update, scheduler, run, request, original)
        return original(*args, **kwargs)

    def _run_of(self, scheduler: Any) -> Run | None:
        """Return the run of an update: the run of the calling pipeline, or of the last loop with this scheduler."""
        caller = find_caller(self._requests)
        if caller.pipeline is not None:
            run = self._requests.runs.get(caller)
            is_caller = run is not None and run.pipeline is not None and run.pipeline() is caller.pipeline
            return run if is_caller else None
        loops = [run for run in self._requests.runs if run.pipeline is None and run.thread == caller.thread]
        return next((run for run in reversed(loops) if run.scheduler and scheduler in (None, run.scheduler())), None)

    def _extend_gap(
        self, gap: Gap, update: Update, scheduler: Any, run: Run, request: Request, original: Callable[..., Any]
    ) -> Any:
        """Make the update of a cached step, and add it to the gap."""
        if gap.known[0].calls != frozenset(request.calls):
            request.fallbacks[OTHER_CALLS] += 1
            del request.gaps[scheduler]
            return update.apply(original)
        if not gap.is_open:
            gap = replace(gap, before=twin_of(scheduler), sample=update.sample.clone())
        states = update.random_states()
        returned = update.apply(original)
        result = sample_of(returned)
        if not all(map(torch.equal, states, update.random_states())):
            self._give_up("random", run, request)
        elif result is None:
            self._give_up("unlike", run, request)
        else:
            link = Link(request.step, update.others, result.clone(), snapshot(result).weakened())
            request.gaps[scheduler] = gap.with_link(link)
        return returned

    def _end_gap(self, gap: Gap, update: Update, scheduler: Any, run: Run, request: Request) -> Update:
        """Correct the gap before a full step, and return the update of this step."""
        assert request.rules.corrector is not None
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
            request.gaps[scheduler] = gap.closed(full, request.rules.corrector.full_steps_needed)
        return update

    def _correct(self, gap: Gap, update: Update, scheduler: Any, run: Run, request: Request) -> Update:
        """Return the update at the end of a gap with the corrected sample and output."""
        assert request.rules.corrector is not None
        try:
            corrected = request.rules.corrector.correct(gap, request.step, update, scheduler)
        except Exception as error:  # of the scheduler's copy: the request continues uncorrected
            self._give_up("failed", run, request, f"{type(error).__name__}: {error}")
            return update
        take_state(scheduler, corrected.scheduler)
        values = corrected.sample - update.sample, update.sample
        change, size = (value.float().flatten(1).norm(dim=1) for value in values)
        request.corrections.append((request.step, (change / size).mean()))
        return update._replace(output=corrected.output, sample=corrected.sample)

    def _give_up(self, problem: str, run: Run, request: Request, reason: str = "") -> None:
        """Stop correcting this request, and note why."""
        request.uncorrected = True
        request.gaps.clear()
        self._requests.note("correction", f"{OFF[problem].format(reason)}, so {UNCORRECTED}", run)


def _problem(original: Callable[..., Any], scheduler: Any, update: Update | None, request: Request) -> str | None:
    """Return the key in `OFF` of the reason why the request cannot be corrected; None if it can."""
    if scheduler is None or getattr(original, "__func__", None) is not getattr(type(scheduler), "step", None):
        return "replaced"
    if update is None:
        return "unlike"
    if update.takes_more_samples:
        return "latents"
    gap = request.gaps.get(scheduler)
    return "twice" if gap is not None and gap.last_step == request.step else None


def _with_sample(gap: Gap, sample: Tensor, request: Request) -> Gap:
    """Return the gap with the sample of the next update in place of the last update's result."""
    last = gap.links[-1]
    assert last.result is not None
    if last.result.shape != sample.shape:
        request.fallbacks[OTHER_SHAPE] += 1
        return Gap()
    if last.returned is not None and last.returned.is_still(sample):
        return gap.with_next_sample(sample, None)
    return gap.with_next_sample(sample, sample == last.result.to(sample.dtype))
