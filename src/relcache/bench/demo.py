"""The demonstration: full compute, the peers, the ablation and RFC, with the same seeds and numbers of full steps.

Each method's pictures are kept in the output folder as soon as they are made; the same command goes on from there.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import relcache
from relcache.bench import files, gallery
from relcache.bench.calibration import WARMUP, Calibration, calibrate, calibration_seeds, interval_for
from relcache.bench.sampling import Sampler
from relcache.bench.tasks import TASKS
from relcache.expansion import Form
from relcache.figures.sheet import Row
from relcache.methods import FORA, RCS, RFC, RFE, Method, TaylorSeer, method_from_text
from relcache.metrics.pair import psnr, ssim

STEPS = 50
TARGETS = (14, 8, 7)  # full steps of 50, as in the paper's table for DiT-XL/2
FIRST_THRESHOLD = 0.2


@dataclass(frozen=True)
class Entry:
    """One method of the demonstration.

    `make` builds it from an interval or a threshold; `phase` asks for a first full step other than the published one.
    """

    method: str
    order: int
    scheduled: str  # "interval" or "threshold"
    make: Callable[..., Method]
    by_default: bool = True
    phase: int | None = None

    @property
    def name(self) -> str:
        """How the command line names it."""
        return f"{self.method}-{self.order}" if self.order else self.method


def _rfc(order: int, direction: Form) -> Callable[[float], Method]:
    return lambda threshold: RFC(order, threshold, WARMUP, direction)


ENTRIES = [
    Entry("fora", 0, "interval", lambda interval: FORA(interval, WARMUP)),
    Entry("taylorseer", 1, "interval", lambda interval: TaylorSeer(1, interval, WARMUP)),
    Entry("taylorseer", 2, "interval", lambda interval: TaylorSeer(2, interval, WARMUP)),
    Entry("taylorseer-p3", 1, "interval", lambda interval: TaylorSeer(1, interval, WARMUP, phase=3), phase=3),
    Entry("rfe", 1, "interval", lambda interval: RFE(1, interval, WARMUP)),
    Entry("rfe", 2, "interval", lambda interval: RFE(2, interval, WARMUP)),
    Entry("rcs", 1, "threshold", lambda threshold: RCS(1, threshold, WARMUP)),
    Entry("rcs", 2, "threshold", lambda threshold: RCS(2, threshold, WARMUP)),
    Entry("rfc", 1, "threshold", _rfc(1, "taylor")),
    Entry("rfc", 2, "threshold", _rfc(2, "taylor")),
    Entry("newton", 1, "interval", lambda n: method_from_text(f"newton:order=1,interval={n}"), by_default=False),
    Entry("newton", 2, "interval", lambda n: method_from_text(f"newton:order=2,interval={n}"), by_default=False),
    Entry("rfe-newton", 1, "interval", lambda n: RFE(1, n, WARMUP, "newton"), by_default=False),
    Entry("rfe-newton", 2, "interval", lambda n: RFE(2, n, WARMUP, "newton"), by_default=False),
    Entry("rfc-newton", 1, "threshold", _rfc(1, "newton"), by_default=False),
    Entry("rfc-newton", 2, "threshold", _rfc(2, "newton"), by_default=False),
]


def choose(names: str | None) -> list[Entry]:
    """The entries that a comma-separated list names: `rfc-2` one, `rfc` all orders, `all` everything there is.

    Raises:
        ValueError: an unknown name; the message gives the nearest right one.
    """
    if names is None:
        return [entry for entry in ENTRIES if entry.by_default]
    chosen: list[Entry] = []
    for name in (part.strip().lower() for part in names.split(",") if part.strip()):
        hits = [entry for entry in ENTRIES if name in (entry.name, entry.method, "all")]
        if not hits and name != "full":  # full compute is always there
            known = sorted({entry.name for entry in ENTRIES} | {entry.method for entry in ENTRIES})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown method {name!r}: {hint}there are {', '.join(known)}, all")
        chosen += [entry for entry in hits if entry not in chosen]
    return chosen


def targets_for(steps: int) -> list[int]:
    """The default numbers of full steps: 14, 8 and 7 of 50, about the same shares of other runs, above the warm-up."""
    return sorted({max(WARMUP + 1, round(nfc * steps / STEPS)) for nfc in TARGETS}, reverse=True)


@dataclass(frozen=True)
class Settings:
    """What decides the pictures and thresholds of a demonstration; a folder of results belongs to one of these."""

    task: str
    samples: int = 16
    steps: int = STEPS
    guidance: float | None = None
    seed: int = 0
    batch: int = 32
    calibration_samples: int = 6

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"there is no task {self.task!r}; there are {', '.join(TASKS)}, all")
        if self.guidance is None:
            object.__setattr__(self, "guidance", TASKS[self.task].guidance)
        if self.samples < 2:
            raise ValueError(f"the demonstration needs at least 2 samples, got {self.samples}")
        if self.steps <= WARMUP:
            raise ValueError(
                f"{self.steps} steps are no more than the warm-up of {WARMUP} full steps: nothing would be cached"
            )
        for name in ("batch", "calibration_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 1_000_000 - self.samples:
            raise ValueError(f"the seed lies between 0 and {999_999 - self.samples}; those above calibrate")


@dataclass
class Demo:
    """A demonstration in progress.

    Args:
        pipeline: of the task's model.
        settings: what the folder's results belong to.
        out: the folder.
        announce: called with the name of each piece of work before it begins.
        advance: called with the number of samples done.
    """

    pipeline: Any
    settings: Settings
    out: Path
    announce: Callable[[str], None]
    advance: Callable[[int], None]

    def __post_init__(self) -> None:
        self.seeds = [self.settings.seed + index for index in range(self.settings.samples)]
        self.task = TASKS[self.settings.task]
        self.conditions = self.task.conditions(self.seeds)
        self.judge = self.task.judge()
        self.written: list[Path] = []
        options = {**self.task.options, "guidance_scale": self.settings.guidance}
        self.sampler = Sampler(self.pipeline, self.settings.steps, self.settings.batch, options)
        weights = self.pipeline.transformer.state_dict()
        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        device = str(self.pipeline.device)
        digest.update(f"{relcache.__version__} {torch.__version__} {device}".encode())
        digest.update(b"".join(np.float64(w.double().sum().item()).tobytes() for w in weights.values()))
        self.store = self.out / "runs" / digest.hexdigest()[:12]

    def run(self, entries: list[Entry], targets: list[int]) -> list[dict[str, Any]]:
        """Make every picture that is not there yet, and return the table's rows; writes table and sheets as well."""
        full = self._pictures("full", lambda: method_from_text("full"))
        rows = [self._row(full, full, "full", None, self.settings.steps)]
        for nfc in targets:
            sheet = [Row("full compute", full["images"])]
            for entry in entries:
                result = self._pictures(f"{entry.name}-nfc{nfc}", self._maker(entry, nfc))
                rows.append(self._row(result, full, entry.method, entry.order, nfc))
                caption = f"{entry.name}\n{rows[-1]['psnr']:.1f} dB, {rows[-1]['nfc']:.4g} full"
                sheet.append(Row(caption, result["images"]))
            title = f"{nfc} of {self.settings.steps} steps in full"
            prompts = [str(condition) for condition in self.conditions if isinstance(condition, str)]
            self.written += gallery.write_sheets(self.out, sheet, title, prompts, f"-nfc{nfc}")
        self._write(rows)
        return rows

    def _maker(self, entry: Entry, nfc: int) -> Callable[[], Method]:
        """What builds the entry's method at `nfc` full steps."""
        if entry.scheduled == "interval":
            return lambda: entry.make(interval_for(nfc, self.settings.steps, entry.phase))

        def make() -> Method:
            path = self.store / f"{entry.name}-thresholds.json"
            known = Calibration({row[0]: row[1] for row in json.loads(path.read_text())} if path.exists() else {})

            def tell(threshold: float, found: float) -> None:
                files.write_json(path, sorted(known.tried.items()))
                self.announce(f"{entry.name}: τ = {threshold:g} gives {found:g} full steps")

            self.announce(f"threshold of {entry.name} for {nfc} full steps")
            seeds = calibration_seeds(self.settings.calibration_samples)
            conditions = self.task.conditions(seeds)
            start = entry.make(FIRST_THRESHOLD)
            return entry.make(calibrate(self.sampler, start, nfc, seeds, conditions, known=known, most=7, tell=tell))

        return make

    def _pictures(self, name: str, make: Callable[[], Method]) -> dict[str, np.ndarray]:
        """Pictures and costs under `name`, from the folder if they are there."""
        path = self.store / f"{name}.npz"
        if path.exists():
            result = files.read_arrays(path)
            self.announce(f"{name} (from {path.parent})")
            self.advance(self.settings.samples)
            return result
        method = make()
        self.announce(name)
        samples = self.sampler.run(method, self.seeds, self.conditions, self.advance)
        result = {
            "images": samples.images.numpy(),
            "nfc": np.array(samples.nfc),
            "flops": np.array(samples.flops),
            "seconds": np.array(samples.seconds),
            "threshold": np.array(getattr(method.schedule, "threshold", np.nan)),
        }
        files.write_arrays(path, result)
        files.write_json(path.with_suffix(".json"), [report.to_dict() for report in samples.reports])
        return result

    def _row(
        self, result: dict[str, np.ndarray], full: dict[str, np.ndarray], method: str, order: int | None, target: int
    ) -> dict[str, Any]:
        images, references = torch.from_numpy(result["images"]), torch.from_numpy(full["images"])
        itself = method == "full"
        threshold = float(result["threshold"])
        return {
            "method": method,
            "order": order,
            "nfc_target": target,
            "nfc": float(result["nfc"]),
            "threshold": None if np.isnan(threshold) else threshold,
            "tflops": float(result["flops"]) / 1e12,
            "seconds": float(result["seconds"]),
            "psnr": None if itself else float(psnr(images, references).mean()),
            "ssim": None if itself else float(ssim(images, references).mean()),
            **self.judge(images, self.conditions, None if itself else references),
        }

    def _write(self, rows: list[dict[str, Any]]) -> None:
        files.write_json(self.out / "table.json", rows)
        files.write_json(self.out / "settings.json", {**asdict(self.settings), "torch": torch.__version__})
        head = (
            f"{self.settings.samples} samples of {self.task.model}, {self.settings.steps} steps, guidance "
            f"{self.settings.guidance}, seeds from {self.settings.seed}, batches of {self.settings.batch}. Thresholds "
            f"found on {self.settings.calibration_samples} other seeds. TFLOPs are per picture, seconds for all "
            f"pictures on {self.pipeline.device} with {torch.get_num_threads()} threads.\n\n"
        )
        files.write_whole(
            self.out / "table.md",
            (head + files.markdown_table(rows, COLUMNS | dict.fromkeys(self.task.columns, ".3f"))).encode(),
        )


COLUMNS = {
    "method": "",
    "order": "",
    "nfc_target": "",
    "nfc": ".2f",
    "threshold": ".4g",
    "tflops": ".4f",
    "seconds": ".1f",
    "psnr": ".2f",
    "ssim": ".4f",
}
