"""The pieces of work of a benchmark. Each ends in one file, which is written whole or not at all.

Any process can do any piece, even twice, with the same result: seeds belong to samples, and each piece has all
that it needs. So pieces may run in one process or on many machines, and a killed process loses only its own piece.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relcache.bench import files
from relcache.bench.comparison.contestants import (
    Unfit,
    budgeted,
    ends_one_contestant,
    reason_of,
    sample,
    seconds_of_full_call,
)
from relcache.bench.figures.sheet import to_8_bits
from relcache.bench.quality.measures import Measure, make_measure
from relcache.bench.sampling import gallery
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import TriedThresholds
from relcache.bench.sampling.pipelines import load_pipeline, usable_device
from relcache.bench.sampling.stopwatch import keep_memory
from relcache.bench.saved import TRIED_FORM

UNFIT = "unfit"  # the key of the reason why a rival cannot run on the model
FRESH = 2.0  # seconds for which the time of a full call is taken to last
UNSTEADY, ATTEMPTS = 0.15, 3  # a batch runs again if the times of a full call before and after it differ by more


@dataclass(frozen=True)
class Setup:
    """The settings that a process needs for any piece of work.

    Attributes:
        model, device, dtype, offload: as `load_pipeline` takes them.
        steps: denoising steps.
        options: further arguments of the pipeline's call.
        measures: the options of each measure by name.
        threads: threads of each process; 0 keeps torch's own number. Results are bit-equal only at the same number.
        timed: whether denoising is timed against full compute before and after each batch, and caches are weighed.
    """

    model: str
    device: str = "auto"
    dtype: str = "float32"
    offload: str = "none"
    steps: int = 50
    options: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int = 0
    timed: bool = False


@dataclass(frozen=True)
class Budget:
    """Find the interval or the threshold that gives each of the numbers of full steps `targets`.

    `file` then holds the found configs by number. If a rival cannot run on the model, only the file `unfit` is written,
    with the reason, and the next run tries again. `tried` keeps the thresholds that a killed search has tried.
    """

    file: Path
    tried: Path
    config: Mapping[str, Any]
    targets: tuple[int, ...]
    seeds: tuple[int, ...]
    conditions: tuple[int | str, ...]
    batch: int

    @property
    def unfit(self) -> Path:
        """The file that holds why a rival cannot run."""
        return self.file.with_name(f"{self.file.stem}-unfit.json")


@dataclass(frozen=True)
class Sampling:
    """Make one batch of samples with the method of `config`, numbered from `first` on, in the folder of `file`.

    `file`, which is written last, holds the batch's report, seconds and bytes. If a rival fails, or a method lacks
    memory, only the file `unfit` is written, with the reason. The next run tries again.
    """

    file: Path
    first: int
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    conditions: tuple[int | str, ...]

    @property
    def unfit(self) -> Path:
        """The file that holds why these samples cannot be made, for all batches of the folder."""
        return self.file.with_name("unfit.json")


@dataclass(frozen=True)
class Measuring:
    """Take one measure of the samples numbered from `first` on in a folder, against those of `references`."""

    file: Path
    measure: str
    first: int
    samples: Path
    references: Path
    conditions: tuple[int | str, ...]


Work = Budget | Sampling | Measuring


class Worker:
    """Do pieces of work; load the model and the measures' networks when a piece first needs them."""

    def __init__(self, setup: Setup) -> None:
        if setup.threads:
            torch.set_num_threads(setup.threads)
        if setup.timed and torch.device(usable_device(setup.device)).type == "cpu":
            keep_memory()
        self.setup = setup
        self.device = usable_device(setup.device)
        self._cuda = torch.device(self.device).type == "cuda"
        self._pipeline: Any = None
        self._warm: set[str] = set()  # methods that ran before
        self._probed: tuple[int, float, float] | None = None  # batch, moment, and seconds of a full call
        self._measures: dict[str, Measure] = {}

    def process(self) -> int:
        """Return the number of the worker's process."""
        return os.getpid()

    def do(self, work: Work, tell: Callable[[str], None] = lambda text: None) -> None:
        """Do `work`, unless its file exists."""
        if work.file.exists():
            return
        if isinstance(work, Budget):
            self._find(work, tell)
        elif isinstance(work, Sampling):
            self._sample(work)
        else:
            self._measure(work)

    def _sampler(self, batch: int) -> Sampler:
        setup = self.setup
        if self._pipeline is None:
            self._pipeline = load_pipeline(setup.model, self.device, setup.dtype, setup.offload)
        return Sampler(self._pipeline, setup.steps, batch, setup.options)

    def _find(self, work: Budget, tell: Callable[[str], None]) -> None:
        known = TriedThresholds()
        if work.tried.exists():
            tried = files.read_json(work.tried, TRIED_FORM)
            with files.reading(work.tried):
                for threshold, count in tried:
                    if not (math.isfinite(threshold) and math.isfinite(count) and threshold >= 0):
                        raise ValueError(f"a threshold of {threshold} with {count} full steps")
                    known.remembered[threshold] = count

        def keep(threshold: float, found: float) -> None:
            files.write_json(work.tried, sorted({**known.remembered, **known.tried}.items()))
            tell(f"{work.config['method']}: τ = {threshold:g} gives {found:g} full steps")

        sampler = self._sampler(work.batch)
        try:
            found = budgeted(work.config, work.targets, sampler, work.seeds, work.conditions, keep, known)
        except Unfit as reason:
            files.write_json(work.unfit, str(reason))
        else:
            files.write_json(work.file, found)

    def _sample(self, work: Sampling) -> None:
        if work.unfit.exists():
            return
        sampler, reason = self._sampler(len(work.seeds)), ""
        try:
            self._sample_timed(work, sampler)
        except Exception as error:
            if not ends_one_contestant(work.config, error):
                raise
            reason = reason_of(error)
        if reason:  # outside of the handler, which holds the run's memory
            if self._cuda:
                torch.cuda.empty_cache()
            replace(sampler, steps=2).call(work.seeds, work.conditions)  # raises if nothing can run any more
            files.write_json(work.unfit, reason)

    def _sample_timed(self, work: Sampling, sampler: Sampler) -> None:
        """Make a batch of samples; up to three times if the machine was busy with something else."""
        self._warm_up(sampler, work)
        for _ in range(ATTEMPTS):
            before = self._full_call(sampler, work)
            if self._cuda:
                torch.cuda.reset_peak_memory_stats()
            began = time.time()
            sampled = sample(
                work.config, sampler, work.seeds, work.conditions, timed=self.setup.timed,
                weigh=self.setup.timed and work.first == 0,
            )  # fmt: skip
            memory = torch.cuda.max_memory_allocated() if self._cuda else np.nan
            self._probed = None
            after = self._full_call(sampler, work)
            if not abs(before - after) > UNSTEADY * min(before, after):
                break
        gallery.write_samples(work.file.parent, work.first, to_8_bits(sampled.images.numpy()))
        record = {
            "seeds": work.seeds,
            "seconds": sampled.seconds,
            "denoising": np.nan if sampled.denoising is None else sampled.denoising,
            "calls": sampled.calls,
            "full_call": (before + after) / 2,
            "began": began,
            "memory": memory,
            "held": np.nan if sampled.held is None else sampled.held,
            "report": json.dumps(sampled.report),
        }
        files.write_arrays(work.file, {name: np.array(value) for name, value in record.items()})

    def _warm_up(self, sampler: Sampler, work: Sampling) -> None:
        """Run what takes longer the first time and does not count: a call, and on a GPU each method once."""
        if not self._warm:
            replace(sampler, steps=2).call(work.seeds, work.conditions)
        method = str(work.config["method"])
        if self._cuda and self.setup.timed and method not in self._warm:
            sample(work.config, sampler, work.seeds, work.conditions)
        self._warm.add(method)

    def _full_call(self, sampler: Sampler, work: Sampling) -> float:
        """Return the seconds of a full call now, NaN if they are not wanted or cannot be known.

        The probe after the last piece of work serves if that has only just ended.
        """
        if not self.setup.timed:
            return math.nan
        known = self._probed
        if known is not None and known[0] == len(work.seeds) and time.monotonic() - known[1] < FRESH:
            return known[2]
        seconds = seconds_of_full_call(sampler, work.seeds, work.conditions)
        self._probed = (len(work.seeds), time.monotonic(), np.nan if seconds is None else seconds)
        return self._probed[2]

    def _measure(self, work: Measuring) -> None:
        if work.measure not in self._measures:
            options = self.setup.measures[work.measure]
            self._measures[work.measure] = make_measure(work.measure, self.device, **options)
        count = len(work.conditions)
        images = gallery.read_samples(work.samples, work.first, count)
        same = work.references == work.samples
        references = images if same else gallery.read_samples(work.references, work.first, count)
        measured = self._measures[work.measure](
            torch.from_numpy(images), torch.from_numpy(references), list(work.conditions)
        )
        files.write_arrays(work.file, {name: values.numpy() for name, values in measured.items()})
