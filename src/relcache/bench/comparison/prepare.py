"""Make a comparison from a benchmark and the arguments of a command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from relcache.bench import files
from relcache.bench.comparison.benchmarks import SMALL, Benchmark, in_turn
from relcache.bench.comparison.comparison import Comparison
from relcache.bench.comparison.entries import Entry, choose
from relcache.bench.comparison.settings import Settings
from relcache.bench.comparison.work import Setup
from relcache.bench.quality.measures import unavailable, unjudged
from relcache.bench.sampling.budgets import FIRST_SEED, WARMUP, calibration_seeds
from relcache.bench.sampling.pipelines import class_count, model_folder
from relcache.bench.tables import csv_rows
from relcache.checks import unknown
from relcache.methods import method_from_config

SIZES = ("height", "width", "num_frames")
MOST_SEEDS = 10_000_000
EDGE = 1 << 20  # bytes at each end of a weights file that are hashed


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command line for a benchmark; None keeps the benchmark's own.

    Attributes:
        methods: as `entries.choose` takes them.
        nfc: comma-separated numbers of full steps.
        seeds: the first seed, or a seed for each sample, as `seeds_from_text` reads them.
        prompts: replace the benchmark's own conditions.
        options: further arguments of the pipeline's call.
    """

    model: str | None = None
    methods: str | None = None
    nfc: str | None = None
    samples: int | None = None
    steps: int | None = None
    seeds: str = "0"
    guidance: float | None = None
    batch: int | None = None
    calibration_samples: int = 6
    prompts: Sequence[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "float32"
    offload: str = "none"
    threads: int = 0
    timed: bool = False


def tasks(name: str) -> list[str]:
    """Return the tasks that `--task` names.

    Raises:
        ValueError: an unknown task.
    """
    if name == "all":
        return list(SMALL)
    if name not in SMALL:
        raise ValueError(unknown("task", name, [*SMALL, "all"]))
    return [name]


def prepare(
    benchmark: Benchmark,
    arguments: Arguments,
    out: Path,
    announce: Callable[[str], None] = lambda text: None,
    advance: Callable[[int], None] = lambda count: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Return the comparison of `benchmark` with `arguments`, and with results in `out`.

    `warn` is called with each measure that cannot be taken here, and its remedy.

    Raises:
        ValueError: arguments that do not fit together; the message names the remedy.
    """
    steps = arguments.steps or benchmark.steps
    if steps <= WARMUP:
        raise ValueError(f"{steps} steps are no more than the warm-up of {WARMUP} full steps: nothing would be cached")
    entries = [_warmed(entry, benchmark) for entry in choose(arguments.methods)]
    for entry in entries:
        own = entry.fixed and entry.rival is None
        remark = method_from_config(entry.config).schedule.remark(steps) if own else None
        if remark is not None:
            raise ValueError(f"{entry.name}: {remark}")
    targets = targets_for(benchmark, steps) if arguments.nfc is None else full_steps_from_text(arguments.nfc, steps)
    guidance = benchmark.guidance if arguments.guidance is None else arguments.guidance
    conditions, seeds = conditions_and_seeds(benchmark, arguments)
    reasons = {name: unavailable(name, conditions, **options) for name, options in benchmark.measures.items()}
    resized = [key for key, own in benchmark.options.items() if key in SIZES and arguments.options.get(key, own) != own]
    for name in ("classifier", "recogniser"):
        if name in reasons and resized:
            reasons[name] = f"it knows only samples of {resized[0]} {benchmark.options[resized[0]]}"
    for name, reason in reasons.items():
        if reason:
            warn(f"the table has dashes for {name}: {reason}. After that, the same command fills them in")
    if reasons.get("vbench", "no such measure") is None and (lacking := unjudged(conditions)):
        warn(f"VBench's total is a dash, as no prompt here is judged by {', '.join(lacking)}: table.csv has the rest")
    model = arguments.model or benchmark.model
    model = str(Path(model).resolve()) if arguments.model and Path(model).is_dir() else model
    setup = Setup(
        model, arguments.device, arguments.dtype, arguments.offload, steps,
        options={**benchmark.options, "guidance_scale": guidance, **arguments.options},
        measures={name: options for name, options in benchmark.measures.items() if not reasons[name]},
        threads=arguments.threads, timed=arguments.timed,
    )  # fmt: skip
    if arguments.calibration_samples < 1:
        raise ValueError(f"thresholds need at least 1 calibration sample, got {arguments.calibration_samples}")
    calibration = _conditions(benchmark, arguments, calibration_seeds(arguments.calibration_samples))
    settings = Settings(setup, conditions, seeds, arguments.batch or benchmark.batch, calibration, identity(model))
    return Comparison(settings, entries, targets, out, announce, advance)


def is_protocol(benchmark: Benchmark, arguments: Arguments) -> bool:
    """Whether `arguments` keep the benchmark's model, or a folder of its name, and its samples."""
    name = benchmark.model.rpartition("/")[2]
    own = arguments.model in (None, benchmark.model) or Path(arguments.model or "").name == name
    usual = all(
        getattr(arguments, name) in (None, getattr(benchmark, name)) for name in ("samples", "steps", "guidance")
    )
    prompts = arguments.prompts is None or (benchmark.task == "text" and len(arguments.prompts) == benchmark.samples)
    return own and prompts and usual and not arguments.options


def _warmed(entry: Entry, benchmark: Benchmark) -> Entry:
    """Return `entry` with the warm-up of the benchmark's protocol, unless it has its own."""
    warmup = benchmark.warmup.get(str(entry.config.get("method")).lower())
    return entry if warmup is None else replace(entry, config={"warmup": warmup, **entry.config})


def conditions_and_seeds(benchmark: Benchmark, arguments: Arguments) -> tuple[tuple[int | str, ...], tuple[int, ...]]:
    """Return a condition (class label or prompt) and a seed for each sample."""
    seeds = seeds_from_text(arguments.seeds)
    several = len(seeds) > 1
    bounds = [len(seeds)] * several + ([] if arguments.prompts is None else [len(arguments.prompts)])
    samples = min(bounds, default=benchmark.samples) if arguments.samples is None else arguments.samples
    if samples < 2:
        raise ValueError(f"a comparison needs at least 2 samples, got {samples}")
    if samples > FIRST_SEED:
        raise ValueError(
            f"a comparison has at most {FIRST_SEED} samples, as seeds above those calibrate; got {samples}"
        )
    if arguments.prompts is not None and samples > len(arguments.prompts):
        raise ValueError(f"{samples} samples need as many prompts, got {len(arguments.prompts)}")
    if several and samples > len(seeds):
        raise ValueError(f"{samples} samples need as many seeds, or the first one alone; got {len(seeds)}")
    seeds = seeds[:samples] if several else list(range(seeds[0], seeds[0] + samples))
    return _conditions(benchmark, arguments, seeds), tuple(seeds)


def _conditions(benchmark: Benchmark, arguments: Arguments, seeds: Sequence[int]) -> tuple[int | str, ...]:
    """Return a condition for each seed: prompts or another model's classes in turn, else the benchmark's own."""
    if arguments.prompts is not None:
        return tuple(in_turn(arguments.prompts, len(seeds)))
    classes = class_count(arguments.model) if arguments.model is not None and benchmark.task == "class" else None
    return tuple(benchmark.conditions(seeds) if classes is None else in_turn(range(classes), len(seeds)))


def seeds_from_text(text: str) -> list[int]:
    """Return the seeds of comma-separated numbers and ranges: "7" or "0-9,20,30-39".

    Raises:
        ValueError: another text, or a seed twice.
    """
    found: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part, re.ASCII)
        if not matched or int(matched[2] or matched[1]) < int(matched[1]):
            raise ValueError(f"--seeds takes numbers and ranges such as 0-9,20, or the first seed alone; got {text!r}")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if last - first >= MOST_SEEDS:
            raise ValueError(f"--seeds {text!r} has more than {MOST_SEEDS} seeds")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ValueError(f"--seeds {text!r} has a seed twice")
    return found


def seeds_as_text(seeds: Sequence[int]) -> str:
    """Return seeds as a text that `seeds_from_text` reads."""
    groups = groupby(enumerate(seeds), lambda pair: pair[1] - pair[0])  # a constant within a range
    ranges = [[seed for _, seed in group] for _, group in groups]
    return ",".join(f"{found[0]}-{found[-1]}" if len(found) > 1 else f"{found[0]}" for found in ranges)


def about(comparison: Comparison) -> str:
    """Describe the samples of a comparison: their number, model, options and seeds."""
    settings = comparison.settings
    setup = settings.setup
    options = ", ".join(f"{name} {value}" for name, value in setup.options.items())
    return (
        f"{settings.samples} samples of {setup.model}, {setup.steps} steps, {options}, seeds "
        f"{seeds_as_text(settings.seeds)}, batches of {settings.batch}, {setup.dtype} on {setup.device}"
    )


def targets_for(benchmark: Benchmark, steps: int) -> list[int]:
    """Return the benchmark's numbers of full steps, scaled to `steps` and above the warm-up."""
    return sorted({max(WARMUP + 1, round(nfc * steps / benchmark.steps)) for nfc in benchmark.targets}, reverse=True)


def full_steps_from_text(text: str, steps: int) -> list[int]:
    """Return the numbers of full steps in `--nfc`.

    Raises:
        ValueError: another text, or a number that is not above the warm-up and at most `steps`.
    """
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(f"--nfc takes whole numbers with commas between them, such as 14,8,7; got {text!r}")
    for number in found:
        if not WARMUP < number <= steps:
            raise ValueError(f"--nfc is above the warm-up, {WARMUP}, and at most the {steps} steps; got {number}")
    return list(dict.fromkeys(found))


def identity(model: str) -> str:
    """Return a digest of the weights of a shipped model or a folder; return a hub id as it is."""
    folder = model_folder(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".json") and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(EDGE))
                file.seek(max(0, size - EDGE))
                digest.update(file.read(EDGE))
    return digest.hexdigest()


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a text file, or the column `Prompts` of a CSV file.

    Raises:
        ValueError: no such file, an empty line between prompts, no prompt at all, or no such column.
    """
    with files.reading(path, "give a text file in UTF-8 with a prompt on each line, or a CSV file", "cannot be read"):
        text = path.read_text(encoding="utf-8-sig")
        table = csv_rows(text) if path.suffix.lower() == ".csv" else None
    if table is None:
        lines = text.rstrip("\n").split("\n")
    else:
        heading = list(table[0]) if table else []
        column = next((name for name in heading if (name or "").strip().lower() in ("prompts", "prompt")), None)
        if column is None:
            raise ValueError(f"{path} has no column 'Prompts'; it has {', '.join(filter(None, heading)) or 'no rows'}")
        lines = [row[column] for row in table]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            kind = "line" if table is None else "row"
            raise ValueError(f"{kind} {number} of {path} is empty: give one prompt on each line")
    return [line.strip() for line in lines]


def with_measure(benchmark: Benchmark, name: str, **options: Any) -> Benchmark:
    """Return `benchmark` with more options of one of its measures."""
    return replace(benchmark, measures={**benchmark.measures, name: {**benchmark.measures.get(name, {}), **options}})
