"""Methods compared on the same seeds and conditions: their work, and the costs and measures of the samples.

The output folder keeps each piece of work as soon as it is done; the same call resumes from there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from relcache.bench import files
from relcache.bench.comparison.contestants import check_contestant
from relcache.bench.comparison.entries import Entry
from relcache.bench.comparison.pool import Pool
from relcache.bench.comparison.settings import Settings, short_digest
from relcache.bench.comparison.work import Budget, Measuring, Sampling, Work
from relcache.bench.sampling.budgets import calibration_seeds
from relcache.bench.saved import BUDGETS_FORM, read_part

EXACT = "exact"  # the measure against the exact solution
OWN = 0  # the number of full steps under which a budget of its own is kept


def _stamp(value: Any) -> tuple[int, int] | None:
    """Return the size and time of the file that `value` names, if it names one."""
    path = Path(value) if isinstance(value, str) else None
    return (path.stat().st_size, path.stat().st_mtime_ns) if path is not None and path.is_file() else None


@dataclass(frozen=True)
class Variant:
    """One contestant at one number of full steps; None if its own options decide the number."""

    entry: Entry
    nfc: int | None

    @property
    def name(self) -> str:
        """The beginning of the name of its folder."""
        return self.entry.name if self.nfc is None else f"{self.entry.name}-nfc{self.nfc}"


@dataclass
class Comparison:
    """A comparison in progress.

    Args:
        settings: the settings of the samples.
        entries: the methods.
        targets: the numbers of full steps.
        out: the folder.
        announce: called with texts about the progress.
        advance: called with the number of samples done.
    """

    settings: Settings
    entries: Sequence[Entry]
    targets: Sequence[int]
    out: Path
    announce: Callable[[str], None] = lambda text: None
    advance: Callable[[int], None] = lambda count: None
    unfit: dict[str, str] = field(default_factory=dict, init=False)  # why entries cannot run on the model, by name
    failed: dict[str, str] = field(default_factory=dict, init=False)  # why single variants could not run, by name
    _repeated: set[tuple[str, int]] = field(default_factory=set, init=False)  # with the options of another variant
    full: Variant = field(default_factory=lambda: Variant(Entry("full", {"method": "full"}), None), init=False)
    _folders: dict[str, Path] = field(default_factory=dict, init=False)

    @property
    def store(self) -> Path:
        """The folder of the samples."""
        return self.out / "runs" / self.settings.digest

    @property
    def variants(self) -> list[Variant]:
        """Full compute, then the methods of fixed cost, then all others at each number of full steps."""
        entries = [entry for entry in self.entries if entry.name not in self.unfit]
        fixed = [Variant(entry, None) for entry in entries if entry.fixed]
        numbers = dict.fromkeys(nfc for entry in entries if not entry.fixed for nfc in self._targets_of(entry))
        free = [
            Variant(entry, nfc)
            for nfc in {**dict.fromkeys(self.targets), **numbers}
            for entry in entries
            if not entry.fixed and nfc in self._targets_of(entry) and (entry.name, nfc) not in self._repeated
        ]
        return [self.full, *(variant for variant in (*fixed, *free) if variant.name not in self.failed)]

    def not_run(self, called: Callable[[Entry], str]) -> dict[str, str]:
        """Return why contestants could not run, at all or at a number of full steps, by what `called` names them."""
        reasons = {called(entry): self.unfit[entry.name] for entry in self.entries if entry.name in self.unfit}
        for entry in self.entries:
            for nfc in (None, *self._targets_of(entry)):
                name = Variant(entry, nfc).name
                if name in self.failed:
                    reasons[called(entry) + ("" if nfc is None else f", {nfc} full steps")] = self.failed[name]
        return reasons

    @cached_property
    def exact(self) -> Variant | None:
        """Full compute in many steps, for the measure "exact"; None if that is not taken."""
        if EXACT not in self.settings.setup.measures:
            return None
        return Variant(Entry(EXACT, {"method": "full"}), None)

    @property
    def size(self) -> int:
        """The number of samples of all variants, of the exact solution, and of one calibration for each entry."""
        budgets = sum(map(self._has_work, self.entries))
        made = (len(self.variants) + (self.exact is not None)) * self.settings.samples
        return made + budgets * len(self.settings.calibration)

    def run(self, pool: Pool) -> None:
        """Make and measure all samples that are missing."""
        self._do(pool, [self._budget(entry) for entry in self.entries if self._has_work(entry)])
        self._leave_out()
        references = [self.full] if self.exact is None else [self.full, self.exact]
        for variants in (references, self.variants[1:]):
            sampling = [work for variant in variants for work in self.sampling(variant)]
            for work in sampling:
                work.unfit.unlink(missing_ok=True)
            self._do(pool, sampling)
        self._leave_out_failed()
        measures = self.settings.setup.measures
        self._do(
            pool, [work for variant in self.variants for name in measures for work in self.measuring(variant, name)]
        )

    def _do(self, pool: Pool, pieces: Sequence[Work]) -> None:
        left = []
        for piece in pieces:
            if piece.file.exists():
                self._count(piece)
            else:
                left.append(piece)
        pool.do(left, self._count, self.announce)

    def _count(self, piece: Work) -> None:
        if isinstance(piece, Sampling):
            self.announce(f"sampled {piece.file.parent.name.rpartition('-')[0]}")
        elif isinstance(piece, Measuring):
            self.announce(f"measured {piece.measure}")
        self.advance(0 if isinstance(piece, Measuring) else len(piece.seeds))

    def _has_work(self, entry: Entry) -> bool:
        """Whether a budget has to be found, or a rival's fitness for the model."""
        return not entry.fixed or entry.rival is not None

    def _targets_of(self, entry: Entry) -> Sequence[int]:
        if entry.fixed:
            return (OWN,)
        setup = self.settings.setup
        return entry.rival.targets(self.targets, setup.steps) if setup.timed and entry.rival else self.targets

    def _budget(self, entry: Entry) -> Budget:
        """Return the search for intervals and thresholds."""
        return Budget(
            self._budget_file(entry), self.store / f"{entry.name}-{short_digest(dict(entry.config))}-tried.json",
            entry.config, tuple(self._targets_of(entry)), tuple(calibration_seeds(len(self.settings.calibration))),
            self.settings.calibration, self.settings.batch,
        )  # fmt: skip

    def _budget_file(self, entry: Entry) -> Path:
        targets = "-".join(map(str, self._targets_of(entry)))
        return self.store / f"{entry.name}-{short_digest(dict(entry.config))}-at-{targets}.json"

    def _leave_out(self) -> None:
        """Leave out the rivals that cannot run on the model, and runs of a rival that repeat another one.

        A rival whose authors bound its gaps has the same options at every number of full steps below its least.
        """
        for entry in self.entries:
            if entry.rival is None or entry.name in self.unfit:
                continue
            budget = self._budget(entry)
            if not budget.file.exists():
                self.advance(self.settings.samples * len(budget.targets))
                self.unfit[entry.name] = files.read_json(budget.unfit, str)
                continue
            budgets = files.read_json(budget.file, BUDGETS_FORM)
            known: list[Any] = []
            for nfc in self._targets_of(entry):
                if budgets.get(str(nfc)) in known and (entry.name, nfc) not in self._repeated:
                    self.advance(self.settings.samples)
                    self._repeated.add((entry.name, nfc))
                known.append(budgets.get(str(nfc)))

    def _leave_out_failed(self) -> None:
        """Leave out the variants that failed while they sampled."""
        for variant in self.variants[1:]:
            reason = self.sampling(variant)[0].unfit
            if reason.exists():
                self.failed[variant.name] = files.read_json(reason, str)

    def folder(self, variant: Variant) -> Path:
        """Return the folder of a variant's samples, named after all options of its method, the budget included."""
        if variant.name not in self._folders:
            digest = short_digest(dict(self.config(variant)))
            self._folders[variant.name] = self.store / f"{variant.name}-{digest}"
        return self._folders[variant.name]

    def config(self, variant: Variant) -> Mapping[str, Any]:
        """Return the config of a variant's method, with the interval or threshold that was found."""
        if variant is self.exact:
            return {**variant.entry.config, **self.settings.setup.measures[EXACT]}
        if not self._has_work(variant.entry):
            return variant.entry.config
        path = self._budget_file(variant.entry)
        budgets = files.read_json(path, BUDGETS_FORM)
        with files.reading(path):
            config = budgets[str(OWN if variant.nfc is None else variant.nfc)]
            check_contestant(config)
        return config

    def _batches(self) -> Iterator[tuple[int, tuple[int, ...], tuple[int | str, ...]]]:
        for start in range(0, self.settings.samples, self.settings.batch):
            rows = slice(start, start + self.settings.batch)
            yield start, self.settings.seeds[rows], self.settings.conditions[rows]

    def _samples_file(self, variant: Variant, start: int) -> Path:
        return self.folder(variant) / f"{start:06d}.npz"

    def _measure_file(self, variant: Variant, start: int, measure: str) -> Path:
        options = self.settings.setup.measures[measure]
        known = {name: (value, _stamp(value)) for name, value in options.items()}
        return self.folder(variant) / f"{start:06d}-{measure}{f'-{short_digest(known)}' if known else ''}.npz"

    def sampling(self, variant: Variant) -> list[Sampling]:
        """Return the work of sampling a variant, batch by batch."""
        config = self.config(variant)
        return [
            Sampling(self._samples_file(variant, start), start, config, seeds, rows)
            for start, seeds, rows in self._batches()
        ]

    def measuring(self, variant: Variant, measure: str) -> list[Measuring]:
        """Return the work of one measure of a variant, batch by batch."""
        against = self.exact if measure == EXACT and self.exact is not None else self.full
        samples, references = self.folder(variant), self.folder(against)
        return [
            Measuring(self._measure_file(variant, start, measure), measure, start, samples, references, rows)
            for start, _, rows in self._batches()
        ]

    # Results

    def takes(self, measure: str) -> bool:
        """Whether a measure is taken; it is not if its requirements are missing."""
        return measure in self.settings.setup.measures

    def values(self, variant: Variant, measure: str, name: str) -> Iterator[torch.Tensor]:
        """Yield the values (n, …) that a measure found under `name`, batch by batch."""
        for start, seeds, _ in self._batches():
            path = self._measure_file(variant, start, measure)
            found = torch.from_numpy(files.read_arrays(path, (name,))[name])
            with files.reading(path):
                rows = len(found) if found.ndim else 0
                if not rows or rows % len(seeds):  # a sample may have several
                    raise ValueError(f"its {name} are for {rows} samples, not for {len(seeds)}")
            yield found

    def joined(self, variant: Variant, measure: str, name: str) -> torch.Tensor:
        """Return the values (n, …) that a measure found under `name` for all samples."""
        return torch.cat(list(self.values(variant, measure, name)))

    def scalars(self, variant: Variant, measure: str) -> list[str]:
        """Return the names under which a measure found one number for each sample."""
        found = files.read_arrays(self._measure_file(variant, 0, measure))
        return [name for name, values in found.items() if values.ndim == 1]

    def row(self, variant: Variant) -> dict[str, Any]:
        """Return a variant's part of the table that needs no measure: its budget, and its cost per sample."""
        config = self.config(variant)
        parts = [read_part(self._samples_file(variant, start)) for start, _, _ in self._batches()]
        reports = [report for _, report in parts]
        memory = max(float(part["memory"]) for part, _ in parts)
        held = float(parts[0][0].get("held", math.nan))

        def per_sample(name: str) -> float | None:
            counts = [report[name] for report in reports]
            return None if None in counts else sum(counts) / self.settings.samples / 1e12

        return {
            "method": variant.entry.name,
            "nfc_target": self.settings.setup.steps if variant is self.full else variant.nfc,
            **{name: config.get(name) for name in ("threshold", "interval", "phase")},
            "nfc": sum(report["nfc"] * report["batch"] for report in reports) / sum(r["batch"] for r in reports),
            "tflops": per_sample("flops"),
            "tflops_linear": per_sample("linear_flops"),
            "seconds": statistics.median(float(part["seconds"]) / len(part["seeds"]) for part, _ in parts),
            "cache_gb": max(report["cache_bytes"] for report in reports) / 1e9,
            "memory_gb": None if math.isnan(memory) else memory / 1e9,
            "held_gb": None if math.isnan(held) else held / 1e9,
        }
