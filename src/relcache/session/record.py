"""The record of a session's requests: counts of operations, and reports."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from relcache.engine.host import Host
from relcache.engine.state import Request, Work
from relcache.session.report import Report
from relcache.shapes.flops import Flops, count_modules
from relcache.shapes.meta import sketch, without_values

MOST_KINDS = 64  # kinds of calls recorded for a request
MOST_KEPT = 256  # counts kept, one for each kind of call


class Record:
    """Records calls by kind. Operations are counted once for each kind, on copies of the models without values."""

    def __init__(self, model_name: str, hosts: Sequence[Host]):
        self._model_name, self._hosts = model_name, hosts
        self._counts: dict[Hashable, Flops | str] = {}  # a text says why a kind could not be counted

    def clear_counts(self) -> None:
        """Drop all counts, as the models have changed."""
        self._counts.clear()

    def work(
        self,
        request: Request,
        host: Host,
        key: Hashable,
        sizes: Hashable,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Work:
        """Add a call to the record of its kind, and return this record; `key` identifies the kind."""
        if key not in request.work:
            if len(request.work) >= MOST_KINDS:
                key = None
                self._keep(key, f"ValueError: a request made calls of more than {MOST_KINDS} kinds")
            modules = dict(zip(host.units, host.unit_modules, strict=True))
            try:
                example = sketch((tuple(args), dict(kwargs)))
            except Exception as error:  # arguments that cannot be copied: note it in the report
                example = ((), {})
                self._keep(key, f"{type(error).__name__}: {error}")
            request.work.setdefault(key, Work(host.index, sizes, example, modules))
        request.work[key].calls += 1
        return request.work[key]

    def report(self, request: Request, units: int, counts: bool) -> Report:
        """Return the report of a request. FLOPs are counted here, on the meta device, if `counts`."""
        rules = request.rules
        shared = rules.schedule.needs_signal and request.batch > 1
        (flops, linear_flops, full_flops), problems = self._operations(request) if counts else ((None,) * 3, [])
        return Report(
            method=rules.name,
            forecaster=str(rules.forecaster),
            schedule=str(rules.schedule),
            model=self._model_name,
            units=units,
            steps=len(request.signal),
            nfc=len(request.full_steps),
            full_steps=list(request.full_steps),
            signal=list(request.signal),
            branches=list(request.branches),
            batch=request.batch,
            decision="one decision for the whole batch" if shared else "decisions independent of the batch",
            flops=flops,
            linear_flops=linear_flops,
            full_flops=full_flops,
            cache_bytes=request.cache_bytes,
            device_bytes=request.device_bytes,
            fallbacks=request.fallback_counts(),
            corrector=str(rules.corrector or "none"),
            corrections=request.correction_sizes(),
            notes=[*request.notes.values(), *problems],
            finer=request.setting.finer,
            step_seconds=request.clock.seconds() if request.clock.is_exact else [],
        )

    def _operations(self, request: Request) -> tuple[tuple[int, int, int] | tuple[None, None, None], list[str]]:
        """Return a request's operations: all, all but attention's products, and all without a cache; and problems.

        If there are problems, the operations are None.
        """
        flops = full_flops = products = 0
        problems = []
        for key, work in request.work.items():
            count = self._count(key, work)
            if isinstance(count, str):
                problems.append(f"FLOPs could not be counted: {count}")
                continue
            full_flops += work.calls * count.total
            flops += work.calls * count.total
            products += work.calls * count.products
            for index, times in work.skipped.items():
                flops -= times * sum(count.modules[name] for name in work.modules[index])
                products -= times * sum(count.module_products[name] for name in work.modules[index])
        if problems or not request.work:
            return (None, None, None), problems
        return (flops, flops - products, full_flops), []

    def _count(self, key: Hashable, work: Work) -> Flops | str:
        if key in self._counts:
            return self._counts[key]
        model = self._hosts[work.host].model()
        if model is None:
            return "the model has been deleted"
        names = [name for modules in work.modules.values() for name in modules]
        try:
            return self._keep(
                key, without_values(lambda copied: count_modules(copied(model), names, *copied(work.example)))
            )
        except Exception as error:  # a forward that cannot run on the meta device
            return self._keep(key, f"{type(error).__name__}: {error}")

    def _keep(self, key: Hashable, count: Flops | str) -> Flops | str:
        self._counts[key] = count
        while len(self._counts) > MOST_KEPT:
            self._counts.pop(next(iter(self._counts)))
        return count
