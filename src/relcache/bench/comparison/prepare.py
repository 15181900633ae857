"""From a benchmark and what was asked for to a comparison that can be run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import relcache_models
from relcache.bench import files
from relcache.bench.comparison.benchmarks import SMALL, Benchmark
from relcache.bench.comparison.comparison import Comparison, Settings
from relcache.bench.comparison.entries import Entry, choose
from relcache.bench.comparison.work import Setup
from relcache.bench.quality.measures import unavailable, unjudged
from relcache.bench.sampling.calibration import FIRST_SEED, WARMUP, calibration_seeds
from relcache.bench.sampling.pipelines import classes_in
from relcache.checks import unknown
from relcache.methods import method_from_config

SIZES = ("height", "width", "num_frames")
MOST_SEEDS = 10_000_000
EDGE = 1 << 20  # bytes at each end of a weights file that tell it from others


@dataclass(frozen=True)
class Asked:
    """What a command line asks of a benchmark; None leaves the benchmark's own.

    Attributes:
        methods: as `entries.choose` takes it.
        nfc: numbers of full steps with commas between them.
        seeds: the first, or one for each sample, as `numbers_of` reads them.
        prompts: instead of the benchmark's own conditions.
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


def tasks(name: str) -> list[str]:
    """The tasks that `--task` names.

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
    asked: Asked,
    out: Path,
    announce: Callable[[str], None] = lambda text: None,
    advance: Callable[[int], None] = lambda count: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """The comparison that `asked` makes of `benchmark`, its results in `out`.

    `warn` is told which of its measures cannot be taken here, and what would change that.

    Raises:
        ValueError: something that cannot be had; the message says what, and what can.
    """
    steps = asked.steps or benchmark.steps
    if steps <= WARMUP:
        raise ValueError(f"{steps} steps are no more than the warm-up of {WARMUP} full steps: nothing would be cached")
    entries = [_warmed(entry, benchmark) for entry in choose(asked.methods)]
    for entry in entries:
        remark = method_from_config(entry.config).schedule.remark(steps) if entry.fixed else None
        if remark is not None:
            raise ValueError(f"{entry.name}: {remark}")
    targets = targets_for(benchmark, steps) if asked.nfc is None else numbers(asked.nfc, steps)
    guidance = benchmark.guidance if asked.guidance is None else asked.guidance
    chosen, seeds = conditions(benchmark, asked)
    reasons = {name: unavailable(name, chosen, **options) for name, options in benchmark.measures.items()}
    resized = [key for key, own in benchmark.options.items() if key in SIZES and asked.options.get(key, own) != own]
    for name in ("classifier", "recogniser"):
        if name in reasons and resized:
            reasons[name] = f"it knows samples of {resized[0]} {benchmark.options[resized[0]]} alone"
    for name, reason in reasons.items():
        if reason:
            warn(f"the table has dashes for {name}: {reason}. Then the same command fills them in")
    if reasons.get("vbench", "no such measure") is None and (lacking := unjudged(chosen)):
        warn(f"VBench's total is a dash, as no prompt here is judged by {', '.join(lacking)}: table.csv has the rest")
    setup = Setup(
        model=str(Path(asked.model).resolve())
        if asked.model and Path(asked.model).is_dir()
        else asked.model or benchmark.model,
        device=asked.device,
        dtype=asked.dtype,
        offload=asked.offload,
        steps=steps,
        options={**benchmark.options, "guidance_scale": guidance, **asked.options},
        measures={name: options for name, options in benchmark.measures.items() if not reasons[name]},
        threads=asked.threads,
    )
    settings = Settings(
        setup,
        chosen,
        seeds,
        batch=asked.batch or benchmark.batch,
        calibration=_calibration(benchmark, asked),
        identity=identity(setup.model),
    )
    return Comparison(settings, entries, targets, out, announce, advance)


def is_protocol(benchmark: Benchmark, asked: Asked) -> bool:
    """Whether what is asked is the benchmark as it stands: its model, or a folder of that name, and samples."""
    name = benchmark.model.rpartition("/")[2]
    own = asked.model in (None, benchmark.model) or Path(asked.model or "").name == name
    values = ((asked.samples, benchmark.samples), (asked.steps, benchmark.steps), (asked.guidance, benchmark.guidance))
    prompts = asked.prompts is None or (benchmark.task == "text" and len(asked.prompts) == benchmark.samples)
    return own and prompts and not asked.options and all(given in (None, usual) for given, usual in values)


def _warmed(entry: Entry, benchmark: Benchmark) -> Entry:
    """`entry` with the warm-up that the benchmark's protocol gives its method, unless it has its own."""
    warmup = benchmark.warmup.get(str(entry.config.get("method")).lower())
    return entry if warmup is None else replace(entry, config={"warmup": warmup, **entry.config})


def conditions(benchmark: Benchmark, asked: Asked) -> tuple[tuple[int | str, ...], tuple[int, ...]]:
    """Class labels or prompts, and seeds: one of each for each sample."""
    given = numbers_of(asked.seeds)
    several = len(given) > 1
    samples = benchmark.samples if asked.samples is None else asked.samples
    if asked.samples is None and (several or asked.prompts is not None):
        samples = min(len(many) for many in (given if several else None, asked.prompts) if many is not None)
    if samples < 2:
        raise ValueError(f"a comparison needs at least 2 samples, got {samples}")
    if samples > FIRST_SEED:
        raise ValueError(
            f"a comparison has at most {FIRST_SEED} samples, as seeds above those calibrate; got {samples}"
        )
    if asked.prompts is not None and samples > len(asked.prompts):
        raise ValueError(f"{samples} samples need as many prompts, got {len(asked.prompts)}")
    if several and samples > len(given):
        raise ValueError(f"{samples} samples need as many seeds, or the first one alone; got {len(given)}")
    seeds = given[:samples] if several else list(range(given[0], given[0] + samples))
    chosen = _own(benchmark, asked, seeds) if asked.prompts is None else asked.prompts[:samples]
    return tuple(chosen), tuple(seeds)


def _own(benchmark: Benchmark, asked: Asked, seeds: Sequence[int]) -> Sequence[int | str]:
    """The benchmark's own conditions; of another model with classes, those that it has, in turn."""
    classes = classes_in(asked.model) if asked.model is not None and benchmark.task == "class" else None
    return benchmark.conditions(seeds) if classes is None else [index % classes for index in range(len(seeds))]


def numbers_of(text: str) -> list[int]:
    """Seeds given as numbers and ranges with commas between them: "7" or "0-9,20,30-39".

    Raises:
        ValueError: anything else, or a seed given twice.
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


def said(seeds: Sequence[int]) -> str:
    """Seeds as `numbers_of` reads them."""
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


def _calibration(benchmark: Benchmark, asked: Asked) -> tuple[int | str, ...]:
    if asked.calibration_samples < 1:
        raise ValueError(f"thresholds need at least 1 calibration sample, got {asked.calibration_samples}")
    if asked.prompts is None:
        return tuple(_own(benchmark, asked, calibration_seeds(asked.calibration_samples)))
    return tuple(asked.prompts[index % len(asked.prompts)] for index in range(asked.calibration_samples))


def targets_for(benchmark: Benchmark, steps: int) -> list[int]:
    """The benchmark's numbers of full steps; of a run with other steps about the same shares, above the warm-up."""
    return sorted({max(WARMUP + 1, round(nfc * steps / benchmark.steps)) for nfc in benchmark.targets}, reverse=True)


def numbers(text: str, steps: int) -> list[int]:
    """The numbers of full steps that `--nfc` gives."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(f"--nfc takes whole numbers with commas between them, such as 14,8,7; got {text!r}")
    for number in found:
        if not WARMUP < number <= steps:
            raise ValueError(f"--nfc lies above the warm-up, {WARMUP}, and at most at {steps}, the steps; got {number}")
    return list(dict.fromkeys(found))


def identity(model: str) -> str:
    """Tells the weights of a shipped model or of a folder from others; of a hub id its name must do."""
    folder = relcache_models.folder(model) if model in relcache_models.names() else Path(model)
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
    """One prompt per line of a text file, or the column `Prompts` of a CSV file.

    Raises:
        ValueError: no such file, an empty line between prompts, no prompt at all, or no such column.
    """
    with files.reading(path, "give a text file in UTF-8 with a prompt on each line, or a CSV file", "cannot be read"):
        text = path.read_text(encoding="utf-8-sig")
        table = files.csv_rows(text) if path.suffix.lower() == ".csv" else None
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
    """`benchmark` with more options of one of its measures."""
    return replace(benchmark, measures={**benchmark.measures, name: {**benchmark.measures.get(name, {}), **options}})
