"""Methods compared on the same seeds and conditions: what work that is, and the table that comes of it.

Everything made is kept in the output folder as soon as it is made; the same call goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relcache.bench import files
from relcache.bench.comparison.entries import Entry
from relcache.bench.comparison.pool import Pool
from relcache.bench.comparison.work import Budget, Measuring, Sampling, Setup, Work, done
from relcache.bench.sampling.calibration import FIRST_SEED, calibration_seeds
from relcache.bench.saved import BUDGETS_FORM, read_part
from relcache.methods import method_from_config

FULL = "full"


@dataclass(frozen=True)
class Settings:
    """What decides the samples of a comparison; what is kept in a folder belongs to one of these.

    Attributes:
        setup: model, steps, options of its call.
        conditions: class labels or prompts, one for each sample.
        seeds: one for each sample.
        batch: samples per batch. A method whose schedule looks at the samples decides for a batch at a time.
        calibration: the conditions that thresholds are found on, with seeds that results are never reported on.
        identity: what else the samples depend on, such as a digest of the weights.
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
            raise ValueError(f"seeds lie between 0 and {FIRST_SEED - 1}; those above calibrate")

    @property
    def samples(self) -> int:
        return len(self.conditions)

    @cached_property
    def digest(self) -> str:
        """Names the folder of its samples."""
        setup = asdict(self.setup)
        del setup["measures"]
        known = [setup, self.conditions, self.seeds, self.batch, self.calibration, self.identity]
        known += [version("relcache"), torch.__version__]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def short_digest(value: Any) -> str:
    """Six letters that tell a value from others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def _stamp(value: Any) -> tuple[int, int] | None:
    """Size and time of the file that `value` names, if it does."""
    path = Path(value) if isinstance(value, str) else None
    return (path.stat().st_size, path.stat().st_mtime_ns) if path is not None and path.is_file() else None


@dataclass(frozen=True)
class Cell:
    """One method at one number of full steps (None where its own options decide it)."""

    entry: Entry
    nfc: int | None

    @property
    def name(self) -> str:
        """Begins the name of its folder."""
        return self.entry.name if self.nfc is None else f"{self.entry.name}-nfc{self.nfc}"


@dataclass
class Comparison:
    """A comparison in progress.

    Args:
        settings: what is made.
        entries: the methods.
        targets: the numbers of full steps.
        out: the folder.
        announce: called with a text when a piece of work is begun or has something to say.
        advance: called with the number of samples done.
    """

    settings: Settings
    entries: Sequence[Entry]
    targets: Sequence[int]
    out: Path
    announce: Callable[[str], None] = lambda text: None
    advance: Callable[[int], None] = lambda count: None
    full: Cell = field(default_factory=lambda: Cell(Entry(FULL, {"method": "full"}), None), init=False)
    _folders: dict[str, Path] = field(default_factory=dict, init=False)

    @property
    def store(self) -> Path:
        """The folder of the samples."""
        return self.out / "runs" / self.settings.digest

    @cached_property
    def cells(self) -> list[Cell]:
        """Full compute, then every method at every number of full steps."""
        fixed = [Cell(entry, None) for entry in self.entries if entry.fixed]
        return [
            self.full,
            *fixed,
            *(Cell(entry, nfc) for nfc in self.targets for entry in self.entries if not entry.fixed),
        ]

    @property
    def size(self) -> int:
        """Samples of all cells together."""
        return len(self.cells) * self.settings.samples

    def run(self, pool: Pool) -> None:
        """Make and measure what is not there yet."""
        self._do(pool, self._budgets())
        for cells in ([self.full], self.cells[1:]):
            self._do(pool, [work for cell in cells for work in self.sampling(cell)])
        measures = self.settings.setup.measures
        self._do(pool, [work for cell in self.cells for name in measures for work in self.measuring(cell, name)])

    def _do(self, pool: Pool, pieces: Sequence[Work]) -> None:
        left = [piece for piece in pieces if not done(piece)]
        self.advance(sum(piece.size for piece in pieces) - sum(piece.size for piece in left))
        pool.do(left, lambda piece: self.advance(piece.size), self.announce)

    def _tried_file(self, entry: Entry) -> Path:
        return self.store / f"{entry.name}-{short_digest(dict(entry.config))}-tried.json"

    def _budgets(self) -> list[Work]:
        """The searches for intervals and thresholds."""
        return [
            Budget(
                self._budget_file(entry), self._tried_file(entry), entry.config, tuple(self.targets),
                tuple(calibration_seeds(len(self.settings.calibration))), self.settings.calibration,
                self.settings.batch,
            )
            for entry in self.entries if not entry.fixed
        ]  # fmt: skip

    def _budget_file(self, entry: Entry) -> Path:
        targets = "-".join(map(str, self.targets))
        return self.store / f"{entry.name}-{short_digest(dict(entry.config))}-at-{targets}.json"

    def folder(self, cell: Cell) -> Path:
        """Where a cell's samples are: named after all options of its method, interval or threshold included."""
        if cell.name not in self._folders:
            self._folders[cell.name] = self.store / f"{cell.name}-{short_digest(dict(self.config(cell)))}"
        return self._folders[cell.name]

    def config(self, cell: Cell) -> Mapping[str, Any]:
        """The config of a cell's method, its interval or threshold found."""
        if cell.nfc is None:
            return cell.entry.config
        path = self._budget_file(cell.entry)
        budgets = files.read_json(path, BUDGETS_FORM)
        with files.reading(path):
            config = budgets[str(cell.nfc)]
            method_from_config(config)
        return config

    def _batches(self) -> Iterator[tuple[int, tuple[int, ...], tuple[int | str, ...]]]:
        for start in range(0, self.settings.samples, self.settings.batch):
            rows = slice(start, start + self.settings.batch)
            yield start, self.settings.seeds[rows], self.settings.conditions[rows]

    def _samples_file(self, cell: Cell, start: int) -> Path:
        return self.folder(cell) / f"{start:06d}.npz"

    def _measure_file(self, cell: Cell, start: int, measure: str) -> Path:
        options = self.settings.setup.measures[measure]
        known = {name: (value, _stamp(value)) for name, value in options.items()}
        return self.folder(cell) / f"{start:06d}-{measure}{f'-{short_digest(known)}' if known else ''}.npz"

    def sampling(self, cell: Cell) -> list[Sampling]:
        """The batches of a cell."""
        config = self.config(cell)
        return [
            Sampling(self._samples_file(cell, start), start, config, seeds, rows)
            for start, seeds, rows in self._batches()
        ]

    def measuring(self, cell: Cell, measure: str) -> list[Measuring]:
        """One measure of the batches of a cell."""
        return [
            Measuring(
                self._measure_file(cell, start, measure), measure, start, self.folder(cell), self.folder(self.full),
                rows,
            )
            for start, _, rows in self._batches()
        ]  # fmt: skip

    # What was made

    def parts(self, cell: Cell) -> Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """What it took to make each batch of a cell, in order: seeds, seconds, …, and its report."""
        for start, _, _ in self._batches():
            yield read_part(self._samples_file(cell, start))

    def takes(self, measure: str) -> bool:
        """Whether a measure is taken: not where what it needs is missing."""
        return measure in self.settings.setup.measures

    def values(self, cell: Cell, measure: str, name: str) -> Iterator[torch.Tensor]:
        """What a measure found under `name`, batch by batch."""
        for start, seeds, _ in self._batches():
            path = self._measure_file(cell, start, measure)
            found = torch.from_numpy(files.read_arrays(path, (name,))[name])
            with files.reading(path):
                rows = len(found) if found.ndim else 0
                if not rows or rows % len(seeds):  # a sample may have several
                    raise ValueError(f"its {name} are of {rows} samples, not of {len(seeds)}")
            yield found

    def scalars(self, cell: Cell, measure: str) -> list[str]:
        """The names under which a measure found one number for each sample."""
        found = files.read_arrays(self._measure_file(cell, 0, measure))
        return [name for name, values in found.items() if values.ndim == 1]

    def cost(self, cell: Cell) -> dict[str, float | None]:
        """What a cell's samples cost: full steps and FLOPs per sample, seconds and bytes."""
        reports, seconds, memory = [], [], []
        for part, report in self.parts(cell):
            reports.append(report)
            seconds.append(float(part["seconds"]) / len(part["seeds"]))
            memory.append(float(part["memory"]))
        rows = [report["batch"] for report in reports]

        def per_sample(name: str) -> float | None:
            counts = [report[name] for report in reports]
            return None if None in counts else sum(counts) / self.settings.samples / 1e12

        return {
            "nfc": sum(r["nfc"] * n for r, n in zip(reports, rows, strict=True)) / sum(rows),
            "tflops": per_sample("flops"),
            "tflops_linear": per_sample("linear_flops"),
            "seconds": float(np.median(seconds)),
            "cache_gb": max(report["cache_bytes"] for report in reports) / 1e9,
            "memory_gb": None if math.isnan(max(memory)) else max(memory) / 1e9,
        }

    def row(self, cell: Cell) -> dict[str, Any]:
        """What is known of a cell without any measure."""
        config = self.config(cell)
        return {
            "method": cell.entry.name,
            "nfc_target": self.settings.setup.steps if cell is self.full else cell.nfc,
            "threshold": config.get("threshold"),
            "interval": config.get("interval"),
            "phase": config.get("phase"),
            **self.cost(cell),
        }
