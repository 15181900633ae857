"""Columns of a comparison's table: numbers from the measures of all samples of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from relcache.bench.comparison.comparison import Comparison, Variant
from relcache.bench.quality.metrics import distribution
from relcache.bench.quality.metrics.batches import Batch
from relcache.bench.quality.metrics.features import Extractor, Inception

Summary = Callable[[Comparison, Variant], float | None]


def _of_measure(measure: str, summary: Summary, against_full: bool = False) -> Summary:
    """Return `summary`, with None where the measure is not taken, or for full compute measured against itself."""

    def guarded(comparison: Comparison, variant: Variant) -> float | None:
        if not comparison.takes(measure) or (against_full and variant is comparison.full):
            return None
        return summary(comparison, variant)

    return guarded


def mean(measure: str, name: str, against_full: bool = False) -> Summary:
    """Average over the samples; None for full compute itself if samples are measured against it."""
    return _of_measure(measure, lambda c, v: float(c.joined(v, measure, name).double().mean()), against_full)


def mean_of_judged(measure: str, name: str) -> Summary:
    """Average over the samples that have a number; None without any."""

    def summary(comparison: Comparison, variant: Variant) -> float | None:
        found = comparison.joined(variant, measure, name).double().nanmean().item()
        return None if math.isnan(found) else found

    return _of_measure(measure, summary)


def distance_to_full(measure: str, name: str = "features") -> Summary:
    """Measure the Fréchet distance to the samples of full compute; None for fewer than two samples."""

    def summary(comparison: Comparison, variant: Variant) -> float | None:
        if comparison.settings.samples < 2:
            return None
        own, full = (distribution.fit(comparison.values(v, measure, name)) for v in (variant, comparison.full))
        return distribution.frechet_distance(own, full)

    return _of_measure(measure, summary, against_full=True)


def score(measure: str) -> Summary:
    """Compute the Inception score of a measure's probabilities."""
    return _of_measure(measure, lambda c, v: distribution.inception_score(c.values(v, measure, "probabilities")))


def total(measure: str, names: Sequence[str], of: Callable[[torch.Tensor], float | None]) -> Summary:
    """Apply `of` to the numbers of all samples together, (samples, names)."""
    return _of_measure(measure, lambda c, v: of(torch.stack([c.joined(v, measure, name) for name in names], 1)))


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading in a terminal, the format of its numbers, and their summary.

    Only table.json and table.csv have a `detail`.
    """

    heading: str
    form: str
    summary: Summary
    detail: bool = False


@dataclass(frozen=True)
class Reference:
    """A batch of ADM's evaluator: the samples of the data that a benchmark compares with.

    Statistics come from the file if it holds them, else from its pictures, through `extractor`.
    """

    path: Path
    extractor: Callable[[], Extractor]

    def __post_init__(self) -> None:
        Batch(self.path)  # raise errors before anything is sampled

    @cached_property
    def _features(self) -> dict[str, torch.Tensor]:
        extract = self.extractor()
        parts = [extract(torch.from_numpy(part.copy()).movedim(-1, 1)) for part in Batch(self.path).pictures(64)]
        return {name: torch.cat([part[name] for part in parts]) for name in ("features", "spatial")} if parts else {}

    @cached_property
    def _statistics(self) -> dict[str, distribution.Gaussian]:
        return Batch(self.path).statistics

    def gaussian(self, name: str) -> distribution.Gaussian | None:
        """Return the distribution of its "features" or "spatial" features; None without any."""
        if name not in self._statistics and self._features:
            self._statistics[name] = distribution.fit([self._features[name]])
        return self._statistics.get(name)

    def distance(self, measure: str, name: str) -> Summary:
        """Measure the Fréchet distance to the batch: FID or sFID."""

        def summary(comparison: Comparison, variant: Variant) -> float | None:
            if (known := self.gaussian(name)) is None:
                return None
            return distribution.frechet_distance(distribution.fit(comparison.values(variant, measure, name)), known)

        return _of_measure(measure, summary)

    def coverage(self, measure: str, index: int) -> Summary:
        """Measure precision (0) or recall (1) against the batch's pictures."""

        def summary(comparison: Comparison, variant: Variant) -> float | None:
            known, samples = self._features.get("features"), comparison.joined(variant, measure, "features")
            if known is None or min(len(samples), len(known)) <= distribution.NEIGHBOURS:
                return None
            return distribution.precision_recall(known, samples)[index]

        return _of_measure(measure, summary)


def against(reference: Path | None, weights: Path | None, device: str) -> dict[str, Column]:
    """Return the columns that compare with ADM's reference batch; none without one."""
    if reference is None:
        return {}
    known = Reference(reference, lambda: Inception(weights, device))
    return {
        "fid": Column("FID", ".2f", known.distance("inception", "features")),
        "sfid": Column("sFID", ".2f", known.distance("inception", "spatial")),
        "precision": Column("precision", ".3f", known.coverage("inception", 0)),
        "recall": Column("recall", ".3f", known.coverage("inception", 1)),
    }
