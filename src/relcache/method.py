"""The class of methods: a forecaster of skipped units, a schedule of full steps, and perhaps a corrector of gaps.

Knows forecasters, schedules and correctors, nothing of sessions, models, or names of methods.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

from relcache.checks import bytes_from, check_choice, check_whole
from relcache.correctors import Corrector
from relcache.forecasters import Forecaster
from relcache.models.coarse import Granularity
from relcache.models.origin import Origin
from relcache.schedules import ErrorBudget, Schedule
from relcache.storage.offload import Offload
from relcache.storage.packing import CacheDtype


@dataclass(frozen=True)
class Method:
    """A forecaster of skipped units and a schedule of full steps, with options of the cache.

    `granularity` is the unit: "module" (the paper's), a whole "block", or the "stack" of all blocks. `cache_dtype` is
    the type of packed features between steps; `offload="cpu"` stores them in the host's memory. `memory_limit`, in
    bytes or as text, chooses those of the three that are not passed to `enable`. `corrector` corrects gaps between full
    steps once their end is known. `finer` multiplies the pipeline's steps with the same number of full ones. `made_for`
    is the only model and scheduler that the method accepts; None accepts all.
    """

    forecaster: Forecaster
    schedule: Schedule
    _: KW_ONLY
    name: str = ""
    granularity: Granularity = "module"
    cache_dtype: CacheDtype = "features"
    offload: Offload = "none"
    memory_limit: int | str | None = None
    corrector: Corrector | None = None
    finer: int = 1
    made_for: Origin | None = None

    def __post_init__(self) -> None:
        for value, kind in ((self.forecaster, Forecaster), (self.schedule, Schedule), (self.corrector, Corrector)):
            if not isinstance(value, kind) and not (value is None and kind is Corrector):
                name = kind.__name__
                raise TypeError(f"a method's {name.lower()} is a relcache {name}, got {type(value).__name__}")
        check_whole("finer", self.finer, 1, 16)
        check_choice("the granularity", self.granularity, Granularity)
        check_choice("the cache_dtype", self.cache_dtype, CacheDtype)
        check_choice("offload", self.offload, Offload)
        if self.memory_limit is not None:
            bytes_from(self.memory_limit)
        if not self.name:
            object.__setattr__(self, "name", f"{self.forecaster} with {self.schedule}")

    @property
    def order(self) -> int:
        """The order of the forecaster's expansion."""
        return self.forecaster.expansion.order

    def with_budget(self, *, full_steps: int | None = None, speedup: float | None = None) -> Method:
        """Return this method with exactly `full_steps` full steps, or with as many as a `speedup` of the loop allows.

        Raises:
            ValueError: both are set, or the schedule does not accept the budget.
        """
        if full_steps is not None and speedup is not None:
            raise ValueError("a budget is either full_steps or speedup, not both")
        if full_steps is None and speedup is None:
            return self
        if self.made_for is not None:
            raise ValueError("a preset has full steps of its own: leave full_steps and speedup out, or take another")
        schedule = self.schedule.with_budget(full_steps, speedup)
        if schedule is not None:
            return replace(self, schedule=schedule)
        option = "full_steps" if speedup is None else "speedup"
        raise ValueError(
            f"{option} does not go with {self.name} and its schedule {self.schedule}: take the method auto, or "
            f"in Python forecaster=relcache.{self.forecaster}, for which Growing plans the full steps"
        )

    def with_threshold(self, threshold: float) -> Method:
        """Return this method with another threshold.

        Raises:
            ValueError: the schedule has no threshold.
        """
        if not isinstance(self.schedule, ErrorBudget):
            raise ValueError(f"{self.name} has no threshold: its schedule is {type(self.schedule).__name__}")
        return replace(self, schedule=replace(self.schedule, threshold=threshold))
