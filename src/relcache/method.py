"""A method: what a skipped unit returns, when a step is full, and how gaps are made good.

Knows forecasters, schedules and correctors, nothing of sessions, models, or the names that methods have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from relcache.checks import bytes_from, check_choice, check_whole
from relcache.correctors import Corrector
from relcache.forecasters import Forecaster
from relcache.models.coarse import Granularity
from relcache.models.origin import Origin
from relcache.schedules import ErrorBudget, Growing, Schedule
from relcache.storage.offload import Offload
from relcache.storage.packing import CacheDtype


@dataclass(frozen=True)
class Method:
    """What a skipped unit returns (`forecaster`), when a step is full (`schedule`), and what the pair is called.

    `granularity` says what a unit is: "module" (the paper's), a whole "block", or the "stack" of all blocks;
    `cache_dtype` what features are packed into between the steps: "features" leaves them as they are; `offload="cpu"`
    keeps them in the host's memory. With a `memory_limit`, those of the three that are not named here are chosen.
    `corrector` makes gaps between full steps good once their end is known. `finer` times as many steps are made as are
    asked of the pipeline, at the same number of full ones. `made_for` is the only model and scheduler that it may be
    enabled on, where it was found for one.
    """

    forecaster: Forecaster
    schedule: Schedule
    name: str = ""
    granularity: Granularity = "module"
    cache_dtype: CacheDtype = "features"
    offload: Offload = "none"
    memory_limit: int | str | None = None
    corrector: Corrector | None = None
    finer: int = 1
    made_for: Origin | None = None

    def __post_init__(self) -> None:
        for value, kind, other in ((self.forecaster, Forecaster, "forecaster"), (self.schedule, Schedule, "schedule")):
            if not isinstance(value, kind):
                raise TypeError(f"a method's {other} is a relcache {kind.__name__}, got {type(value).__name__}")
        if self.corrector is not None and not isinstance(self.corrector, Corrector):
            raise TypeError(f"a method's corrector is a relcache Corrector, got {type(self.corrector).__name__}")
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
        """Order of the forecaster's expansion."""
        return self.forecaster.expansion.order

    def with_budget(self, full_steps: int | None = None, speedup: float | None = None) -> Method:
        """The same method with exactly `full_steps` full steps, or as many as make sampling `speedup` times faster.

        Raises:
            ValueError: both; or the schedule has full steps of its own.
        """
        if full_steps is not None and speedup is not None:
            raise ValueError("a budget is either full_steps or speedup, not both")
        if full_steps is None and speedup is None:
            return self
        if self.made_for is not None:
            raise ValueError("a preset has full steps of its own: leave full_steps and speedup out, or take another")
        if isinstance(self.schedule, Growing):
            return replace(self, schedule=replace(self.schedule, full_steps=full_steps, speedup=speedup))
        if isinstance(self.schedule, ErrorBudget) and speedup is None:
            schedule = replace(self.schedule, full_steps=full_steps, longest_gap=None, full_last=0)
            return replace(self, schedule=schedule)
        option = "full_steps" if speedup is None else "speedup"
        raise ValueError(
            f"{option} does not go with {self.name}, whose schedule is {self.schedule}: take the method auto, or "
            f"in Python forecaster=relcache.{self.forecaster}, for which Growing lays the full steps"
        )

    def with_threshold(self, threshold: float) -> Method:
        """The same method with another threshold.

        Raises:
            ValueError: the schedule has no threshold.
        """
        if not isinstance(self.schedule, ErrorBudget):
            raise ValueError(f"{self.name} has no threshold: its schedule is {type(self.schedule).__name__}")
        return replace(self, schedule=replace(self.schedule, threshold=threshold))
