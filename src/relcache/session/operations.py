"""Counts the floating point operations of a request, when its report is asked for. Knows nothing of caching."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from relcache.engine.host import Host
from relcache.engine.state import Request, Work
from relcache.shapes.flops import Flops, count_modules
from relcache.shapes.meta import without_values

MOST_KEPT = 256  # kinds of calls whose count is remembered


class Totals(NamedTuple):
    """Of a request: operations done, those of them outside of attention's products, and those without a cache; None
    where they could not be counted, for the reasons in `problems`."""

    flops: int | None
    linear_flops: int | None
    full_flops: int | None
    problems: list[str]


class Operations:
    """Counts by shapes, on copies of the models that have no values; what was counted once is remembered."""

    def __init__(self, hosts: Sequence[Host]):
        self._hosts = hosts
        self._known: dict[Hashable, Flops | str] = {}

    def clear(self) -> None:
        """Forget what was counted: the models are others."""
        self._known.clear()

    def fail(self, key: Hashable, error: Exception) -> None:
        """Calls of this kind cannot be counted."""
        self._remember(key, f"{type(error).__name__}: {error}")

    def of(self, request: Request) -> Totals:
        """The operations of a request."""
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
            return Totals(None, None, None, problems)
        return Totals(flops, flops - products, full_flops, [])

    def _count(self, key: Hashable, work: Work) -> Flops | str:
        if key not in self._known:
            model = self._hosts[work.host].model()
            if model is None:
                return "the model is gone"
            try:
                names = [name for modules in work.modules.values() for name in modules]

                def count(copied: Any) -> Flops:
                    return count_modules(copied(model), names, *copied(work.example))

                self._remember(key, without_values(count))
            except Exception as error:  # a forward that cannot run on the meta device: the report says so
                self.fail(key, error)
        return self._known[key]

    def _remember(self, key: Hashable, count: Flops | str) -> None:
        self._known[key] = count
        while len(self._known) > MOST_KEPT:
            self._known.pop(next(iter(self._known)))
