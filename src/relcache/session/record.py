"""The record of a session's requests, and the report of the last one. Knows nothing of how it comes about."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from relcache.correctors import Corrector
from relcache.engine.host import Host
from relcache.engine.state import Request, Work
from relcache.forecasters.base import Forecaster
from relcache.schedules.base import Schedule
from relcache.session.operations import Operations
from relcache.session.report import Report
from relcache.shapes.meta import sketch

MOST_KINDS = 64  # kinds of calls that a request keeps a record of


class Record:
    """What the report shows beside the request: the method, the model, and counts of operations."""

    def __init__(
        self,
        method: str,
        forecaster: Forecaster,
        schedule: Schedule,
        corrector: Corrector | None,
        model: str,
        hosts: Sequence[Host],
    ):
        self._method, self._forecaster, self._schedule, self._model = method, forecaster, schedule, model
        self._corrector = corrector
        self.operations = Operations(hosts)

    def work(self, request: Request, host: Host, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Work:
        """The record of the calls of one kind, by its `key`; this call is added to it."""
        if key not in request.work:
            if len(request.work) >= MOST_KINDS:
                key = None
                self.operations.fail(key, ValueError(f"the calls of a request were of more than {MOST_KINDS} kinds"))
            modules = dict(zip(host.units, host.unit_modules, strict=True))
            try:
                example = sketch((tuple(args), dict(kwargs)))
            except Exception as error:  # arguments that cannot be copied: sampling goes on, the report says so
                example = ((), {})
                self.operations.fail(key, error)
            request.work.setdefault(key, Work(host.place, example, modules))
        request.work[key].calls += 1
        return request.work[key]

    def report(self, request: Request, modules: int) -> Report:
        """The report of a request. FLOPs are counted here, on the meta device."""
        totals = self.operations.of(request)
        shared = self._schedule.needs_signal and request.batch > 1
        return Report(
            method=self._method,
            forecaster=str(self._forecaster),
            schedule=str(self._schedule),
            model=self._model,
            modules=modules,
            steps=len(request.signal),
            nfc=len(request.full_steps),
            full_steps=list(request.full_steps),
            signal=list(request.signal),
            branches=list(request.branches),
            batch=request.batch,
            decision="one decision for the whole batch" if shared else "decisions independent of the batch",
            flops=totals.flops,
            linear_flops=totals.linear_flops,
            full_flops=totals.full_flops,
            cache_bytes=request.cache_bytes,
            device_bytes=request.device_bytes,
            fallbacks=request.fallback_counts(),
            corrector=str(self._corrector or "none"),
            corrections=request.correction_sizes(),
            notes=[*request.notes.values(), *totals.problems],
        )
