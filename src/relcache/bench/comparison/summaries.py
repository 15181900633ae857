"""Columns of a comparison's table: numbers made of the measures of all samples of a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from relcache.bench.comparison.comparison import Cell, Comparison
from relcache.bench.quality.metrics.batches import Batch
from relcache.bench.quality.metrics.distribution import (
    NEIGHBOURS,
    Gaussian,
    fit,
    frechet_distance,
    inception_score,
    precision_recall,
)
from relcache.bench.quality.metrics.features import Extractor, Inception

Summary = Callable[[Comparison, Cell], float | None]


def mean(measure: str, name: str, against_full: bool = False) -> Summary:
    """The mean over the samples; None for full compute itself where samples are measured against it."""

    def summary(comparison: Comparison, cell: Cell) -> float | None:
        if not comparison.takes(measure) or (against_full and cell is comparison.full):
            return None
        return float(torch.cat(list(comparison.values(cell, measure, name))).double().mean())

    return summary


def mean_of_judged(measure: str, name: str) -> Summary:
    """The mean over the samples that the measure has a number for; None where it has none."""

    def summary(comparison: Comparison, cell: Cell) -> float | None:
        if not comparison.takes(measure):
            return None
        found = torch.cat(list(comparison.values(cell, measure, name))).double().nanmean().item()
        return None if math.isnan(found) else found

    return summary


def distance_to_full(measure: str, name: str = "features") -> Summary:
    """The Fréchet distance to the samples of full compute."""

    def summary(comparison: Comparison, cell: Cell) -> float | None:
        if not comparison.takes(measure) or cell is comparison.full or comparison.settings.samples < 2:
            return None
        return frechet_distance(
            fit(comparison.values(cell, measure, name)), fit(comparison.values(comparison.full, measure, name))
        )

    return summary


def score(measure: str) -> Summary:
    """The Inception score of a measure's probabilities."""

    def summary(comparison: Comparison, cell: Cell) -> float | None:
        if not comparison.takes(measure):
            return None
        return inception_score(comparison.values(cell, measure, "probabilities"))

    return summary


def total(measure: str, names: Sequence[str], of: Callable[[torch.Tensor], float | None]) -> Summary:
    """What `of` makes of the numbers of all samples together, (samples, names)."""

    def summary(comparison: Comparison, cell: Cell) -> float | None:
        if not comparison.takes(measure):
            return None
        return of(torch.stack([torch.cat(list(comparison.values(cell, measure, name))) for name in names], 1))

    return summary


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading in a terminal, the format of its numbers, and what makes them.

    A `detail` is in table.json and table.csv alone.
    """

    heading: str
    form: str
    summary: Summary
    detail: bool = False


@dataclass(frozen=True)
class Reference:
    """The samples of the data that a benchmark compares with: a batch of ADM's evaluator.

    Statistics come from the file where it holds them, else from its pictures, through `extractor`.
    """

    path: Path
    extractor: Callable[[], Extractor]

    def __post_init__(self) -> None:
        Batch(self.path)  # a file that cannot be read is said before anything is sampled

    @cached_property
    def _features(self) -> dict[str, torch.Tensor]:
        extract = self.extractor()
        parts = [extract(torch.from_numpy(part.copy()).movedim(-1, 1)) for part in Batch(self.path).pictures(64)]
        return {name: torch.cat([part[name] for part in parts]) for name in ("features", "spatial")} if parts else {}

    @cached_property
    def _statistics(self) -> dict[str, Gaussian]:
        return Batch(self.path).statistics

    def gaussian(self, name: str) -> Gaussian | None:
        """The distribution of its "features" or "spatial" features; None where it has none."""
        if name not in self._statistics and self._features:
            self._statistics[name] = fit([self._features[name]])
        return self._statistics.get(name)

    def distance(self, measure: str, name: str) -> Summary:
        """The Fréchet distance to it: FID or sFID."""

        def summary(comparison: Comparison, cell: Cell) -> float | None:
            known = self.gaussian(name) if comparison.takes(measure) else None
            return None if known is None else frechet_distance(fit(comparison.values(cell, measure, name)), known)

        return summary

    def coverage(self, measure: str, index: int) -> Summary:
        """Precision (0) or recall (1) against its pictures."""

        def summary(comparison: Comparison, cell: Cell) -> float | None:
            if not comparison.takes(measure) or not self._features:
                return None
            samples = torch.cat(list(comparison.values(cell, measure, "features")))
            if min(len(samples), len(self._features["features"])) <= NEIGHBOURS:
                return None
            return precision_recall(self._features["features"], samples)[index]

        return summary


def against(reference: Path | None, weights: Path | None, device: str) -> dict[str, Column]:
    """The columns that compare with ADM's reference batch; none without one."""
    if reference is None:
        return {}
    known = Reference(reference, lambda: Inception(weights, device))
    return {
        "fid": Column("FID", ".2f", known.distance("inception", "features")),
        "sfid": Column("sFID", ".2f", known.distance("inception", "spatial")),
        "precision": Column("precision", ".3f", known.coverage("inception", 0)),
        "recall": Column("recall", ".3f", known.coverage("inception", 1)),
    }
