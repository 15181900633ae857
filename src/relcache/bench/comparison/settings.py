"""The settings that decide the samples of a comparison, and the names of folders that follow from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from relcache.bench.comparison.work import Setup
from relcache.bench.sampling.budgets import FIRST_SEED


@dataclass(frozen=True)
class Settings:
    """The settings that decide the samples of a comparison; different settings have different folders of samples.

    Attributes:
        setup: model, steps, options of its call.
        conditions: class labels or prompts, one for each sample.
        seeds: one for each sample.
        batch: samples per batch. A schedule that depends on the samples decides for a batch at a time.
        calibration: conditions for finding thresholds; no result is reported on their seeds.
        identity: anything else that the samples depend on, such as a digest of the weights.
    """

    setup: Setup
    conditions: tuple[int | str, ...]
    seeds: tuple[int, ...]
    batch: int = 32
    calibration: tuple[int | str, ...] = ()
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.conditions:
            raise ValueError("a comparison needs at least one sample")
        if self.batch < 1:
            raise ValueError(f"the batch holds at least 1 sample, got {self.batch}")
        if len(self.seeds) != len(self.conditions):
            raise ValueError(f"{len(self.conditions)} samples need as many seeds, got {len(self.seeds)}")
        if not 0 <= min(self.seeds) <= max(self.seeds) < FIRST_SEED:
            raise ValueError(f"seeds are from 0 to {FIRST_SEED - 1}; higher seeds are for calibration")

    @property
    def samples(self) -> int:
        return len(self.conditions)

    @cached_property
    def digest(self) -> str:
        """The name of the folder of its samples."""
        setup = asdict(self.setup)
        del setup["measures"]
        known = [setup, self.conditions, self.seeds, self.batch, self.calibration, self.identity]
        versions = [_version(name) for name in ("relcache", "torch", "diffusers", "cache-dit")]
        return short_digest([*known, *versions], 12)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def short_digest(value: Any, letters: int = 6) -> str:
    """Return the first `letters` of the SHA-256 digest of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:letters]
