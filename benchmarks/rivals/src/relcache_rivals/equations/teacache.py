"""TeaCache: reuse while the accumulated, rescaled change of the first block's modulated input is small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from relcache.api import Handle
from relcache.bench.rivals.base import Options
from relcache.bench.sampling.batches import Sampler
from relcache.forecasters import Reuse
from relcache.method import Method
from relcache_rivals.equations.accumulated import AccumulatedChange, Meter, relative_change
from relcache_rivals.equations.base import Equation
from relcache_rivals.equations.recording import record

DEGREE = 4


@dataclass(frozen=True)
class TeaCache(Equation):
    """TeaCache: reuse of the stack's residual, by the accumulated change of the modulated input.

    Source: arXiv 2411.19108, and public documentation of ports. Defaults: degree 4, the first and last step full.

    Our reading: the polynomial is fitted to changes of the last block's output between successive steps of full runs,
    where the paper has the model's output.
    """

    source: ClassVar[str] = "arXiv 2411.19108"
    budget: ClassVar[str] = "threshold"
    warmup: ClassVar[int] = 2

    def method(self, options: Options, steps: int) -> Method:
        if "polynomial" not in options:
            raise ValueError("TeaCache needs the polynomial that calibrate returns")
        schedule = AccumulatedChange(float(options["threshold"]), tuple(options["polynomial"]))
        return Method(Reuse(), schedule, name=self.name, granularity="stack")

    def enabled(self, pipeline_or_model: Any, options: Options, steps: int) -> Handle:
        handle = super().enabled(pipeline_or_model, options, steps)
        meter_of(handle).watch(handle)
        return handle

    def calibrate(self, sampler: Sampler, seeds: Sequence[int], conditions: Sequence[int | str]) -> dict[str, Any]:
        inputs: list[float] = []
        outputs: list[float] = []
        for start in range(0, len(seeds), sampler.batch):
            rows = slice(start, start + sampler.batch)
            always = AccumulatedChange(-1.0, (0.0,))
            stream, *_ = record(sampler, seeds[rows], conditions[rows], always, always.meter.watch)
            inputs += always.meter.changes
            outputs += [relative_change(before, now) for before, now in pairwise(stream.outputs)]
        return {"polynomial": np.polyfit(inputs, outputs, DEGREE).tolist()}


def meter_of(handle: Handle) -> Meter:
    """Return the meter of an enabled TeaCache."""
    schedule = handle._session.method.schedule
    assert isinstance(schedule, AccumulatedChange)
    return schedule.meter
