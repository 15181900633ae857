"""Sample a pipeline with a contestant, and measure its time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relcache.bench.sampling.batches import Sampler
from relcache.bench.speed.contestants import Contestant, only_transformer
from relcache.bench.speed.scale import Scale, weighed
from relcache.bench.speed.stopwatch import timed
from relcache.models import SPECS, UNSUPPORTED, ModelSpec, spec_for

FULL = Contestant("full compute", lambda pipeline: nullcontext())


class TimedRun(NamedTuple):
    """The pictures of a contestant, float32 (n, …) in [0, 1], and their cost.

    `full_share` is the share of full calls; `calls` is the number of calls per batch. `full` and `cached` are the
    seconds of each full and cached call, and `held` the bytes that the contestant keeps.
    """

    images: Tensor
    seconds: float
    full_share: float
    calls: int
    full: list[float]
    cached: list[float]
    held: int | None


@dataclass(frozen=True)
class Trial:
    """A pipeline, and a condition for each seed, which all contestants sample."""

    sampler: Sampler
    seeds: Sequence[int]
    conditions: Sequence[int | str]

    @property
    def spec(self) -> ModelSpec:
        """The spec of the pipeline's transformer."""
        return spec_for(only_transformer(self.sampler.pipeline), SPECS, UNSUPPORTED)

    def run(self, contestant: Contestant, scale: Scale | None = None, calls: int = 0) -> TimedRun:
        """Sample with a contestant, enabled anew for each batch.

        With a scale, weigh the bytes that it keeps after `calls` calls of the first batch.
        """
        pipeline, spec = self.sampler.pipeline, self.spec
        model = only_transformer(pipeline)
        images, seconds, held, laps = [], 0.0, None, []
        for start in range(0, len(self.seeds), self.sampler.batch):
            rows = slice(start, start + self.sampler.batch)
            with ExitStack() as stack:
                stack.enter_context(contestant.enabled(pipeline))
                weight = stack.enter_context(weighed(model, calls, scale)) if scale is not None and start == 0 else []
                watch = stack.enter_context(timed(model, spec))
                images.append(self.sampler.call(self.seeds[rows], self.conditions[rows]))
            held = weight[0] if weight else held
            seconds += watch.seconds
            laps += watch.each
        full = [time for time, is_full in laps if is_full]
        cached = [time for time, is_full in laps if not is_full]
        batches = len(images)
        return TimedRun(torch.cat(images), seconds, len(full) / len(laps), len(laps) // batches, full, cached, held)
