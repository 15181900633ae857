"""Time of full and cached steps, and what they hold, on one model: methods at each granularity, and peers.

Every contestant runs the same denoising loop on the same inputs in turn, round after round in one process, so that
ratios hold where the machine's speed drifts. The ideal is the number of full steps times the time of a step of the
model as it is.
"""

from __future__ import annotations

import difflib
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

import relcache
from relcache import ModelSpec, Size
from relcache.bench import files
from relcache.bench.asked import call_options
from relcache.bench.calibration import with_any_budget
from relcache.bench.entries import Entry
from relcache.bench.pipelines import precision_of
from relcache.methods import Method, method_from_config
from relcache.models import SPECS
from relcache.schedules import ErrorBudget, Interval

NEVER = 1e9  # a threshold that no error reaches
WARMUP = 2


class Subject(NamedTuple):
    """A model of the paper with random weights: its class, config and size, and how many of its blocks are few."""

    class_name: str
    config: dict[str, Any]
    size: Size
    blocks: tuple[str, ...]
    few: tuple[int, ...]


SUBJECTS = {
    "dit": Subject(
        "DiTTransformer2DModel", {"num_layers": 28, "sample_size": 32, "out_channels": 8}, Size(8, 32, 32),
        ("num_layers",), (4,),
    ),
    "flux": Subject(
        "FluxTransformer2DModel", {"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
        Size(1, 64, 64, text=512), ("num_layers", "num_single_layers"), (2, 4),
    ),
    "hunyuan": Subject(
        "HunyuanVideoTransformer3DModel", {"num_layers": 20, "num_single_layers": 40, "guidance_embeds": True},
        Size(1, 60, 80, 9, 256), ("num_layers", "num_single_layers"), (2, 4),
    ),
}  # fmt: skip


@dataclass
class Course:
    """What every contestant runs: a model, and the arguments of each step's call."""

    about: str
    model: nn.Module
    spec: ModelSpec
    calls: list[dict[str, Any]]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def course_of(
    name: str,
    device: str,
    dtype: str,
    steps: int,
    blocks: Sequence[int] | None = None,
    size: str | None = None,
    frames: int | None = None,
    batch: int | None = None,
) -> Course:
    """The loop on one of SUBJECTS with random weights.

    Args:
        blocks: how many of each kind; [] takes all of them, None few on a CPU and all on a GPU.
        size: HEIGHTxWIDTH in pixels, or one number for both.

    Raises:
        ValueError: an unknown model or dtype, a wrong size, or blocks that do not fit the model's kinds.
    """
    subject, precision = subject_of(name, size, frames, batch), precision_of(dtype)
    if blocks is None:
        blocks = subject.few if torch.device(device).type == "cpu" else []
    if blocks and len(blocks) != len(subject.blocks):
        raise ValueError(f"{name} has blocks of {len(subject.blocks)} kinds; --blocks names {len(blocks)}")
    config = subject.config | dict(zip(subject.blocks, blocks, strict=bool(blocks)))
    latents = subject.size
    with torch.device("meta"):
        model = getattr(diffusers, subject.class_name)(**config)
    model = filled(model, precision, device)
    spec = next(spec for spec in SPECS if spec.class_name == subject.class_name)
    numbers = " + ".join(str(config[kind]) for kind in subject.blocks)
    where = (
        torch.cuda.get_device_name()
        if torch.device(device).type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    about = (
        f"{subject.class_name}, {numbers} blocks, {latents.height * 8} x {latents.width * 8}"
        f"{f', {4 * latents.frames - 3} frames' if latents.frames > 1 else ''}, batch {latents.batch}, {dtype}, {where}"
    )
    return Course(about, model, spec, calls_of(model, spec, latents, steps))


def subject_of(name: str, size: str | None = None, frames: int | None = None, batch: int | None = None) -> Subject:
    """The model of this name, at its own size or at one given in pixels.

    Raises:
        ValueError: there is none, or a wrong size.
    """
    if name not in SUBJECTS:
        near = difflib.get_close_matches(name, SUBJECTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown model {name!r}: {hint}there are {', '.join(SUBJECTS)}")
    subject = SUBJECTS[name]
    latents = replace(subject.size, batch=batch or subject.size.batch)
    given = call_options(None, None, size, frames, [])
    if size is not None:
        latents = replace(latents, height=given["height"] // 8, width=given["width"] // 8)
    if frames is not None:
        latents = replace(latents, frames=(frames - 1) // 4 + 1)
    config = subject.config | ({"sample_size": latents.height} if "sample_size" in subject.config else {})
    return subject._replace(size=latents, config=config)


def filled(model: Any, dtype: torch.dtype, device: str) -> nn.Module:
    """A model of the meta device on a real one, with small random weights."""
    tables = type(model)(**model.config) if any(True for _ in model.buffers()) else None
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    for name, buffer in tables.named_buffers() if tables is not None else ():
        model.get_buffer(name).copy_(buffer)
    return model


def calls_of(model: nn.Module, spec: ModelSpec, size: Size, steps: int) -> list[dict[str, Any]]:
    """The arguments of each step: the sample drifts from one noise to another, the timestep falls to a fiftieth."""
    device = next(model.parameters()).device
    begin, end = (_on(device, spec.example(model, size)) for _ in range(2))
    sample = spec.sample or "hidden_states"
    calls = []
    for step in range(steps):
        share = step / steps
        moved = begin | {sample: torch.lerp(begin[sample], end[sample], 0.2 * share)}
        time = begin[spec.timestep]
        moved[spec.timestep] = (time * (1 - 0.98 * share)).to(time.dtype)
        calls.append(moved)
    return calls


def _on(device: torch.device, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


class Contestant(NamedTuple):
    """A way to skip work: its name, and a context in which the model does."""

    name: str
    enabled: Callable[[nn.Module], AbstractContextManager[Any]]


def ours(name: str, method: Method, interval: int) -> Contestant:
    """A method with as many full steps as the interval has, at the same places.

    An error budget measures its signal at each step, and is held to the interval by its longest gap.
    """
    schedule = method.schedule
    if isinstance(schedule, ErrorBudget):
        schedule = ErrorBudget(NEVER, WARMUP, schedule.norm, longest_gap=interval)
    elif isinstance(schedule, Interval):
        schedule = Interval(interval, WARMUP)
    chosen = replace(method, schedule=schedule)
    return Contestant(name, lambda model: relcache.enable(model, chosen))


def diffusers_taylorseer(order: int, interval: int, spec: ModelSpec) -> Contestant:
    """TaylorSeer of diffusers, on the very modules that relcache caches."""

    @contextmanager
    def enabled(model: nn.Module) -> Iterator[None]:
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache
        from diffusers.hooks.hooks import CacheContext, _set_cache_context
        from diffusers.hooks.taylorseer_cache import _TAYLORSEER_CACHE_HOOK

        names = [re.escape(_one_module(unit.modules)) for unit in spec.units(model)]
        dtype = next(model.parameters()).dtype
        apply_taylorseer_cache(
            model,
            TaylorSeerCacheConfig(
                cache_interval=interval, disable_cache_before_step=WARMUP, max_order=order, taylor_factors_dtype=dtype,
                cache_identifiers=names,
            ),
        )  # fmt: skip
        _set_cache_context(model, CacheContext("run"))
        try:
            yield
        finally:
            for module in model.modules():
                registry = getattr(module, "_diffusers_hook", None)
                if registry is not None:
                    registry.remove_hook(_TAYLORSEER_CACHE_HOOK, recurse=False)

    return Contestant(f"diffusers TaylorSeer, m={order}", enabled)


def _one_module(modules: dict[str, nn.Module]) -> str:
    """The module that computes a unit: of several side by side, the block that they lie in."""
    names = list(modules)
    return names[0] if len(names) == 1 else names[0].rpartition(".")[0]


@dataclass
class Times:
    """Of one contestant: seconds of its full and cached steps, of each round, and the ideal in that round."""

    full: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    ideals: list[float] = field(default_factory=list)
    nfc: int = 0
    held: int = 0
    peak: int | None = None

    def row(self, name: str, steps: int, plain: float) -> dict[str, Any]:
        """A row of the table; `plain` is the time of a step of the model as it is."""
        ratios = [seconds / ideal for seconds, ideal in zip(self.rounds, self.ideals, strict=True)]
        return {
            "method": name,
            "nfc": self.nfc,
            "steps": steps,
            "full_ms": 1e3 * statistics.median(self.full),
            "cached_ms": 1e3 * statistics.median(self.cached) if self.cached else None,
            "cached_share": statistics.median(self.cached) / plain if self.cached else None,
            "seconds": statistics.median(self.rounds),
            "of_ideal": statistics.median(ratios),
            "of_ideal_least": min(ratios),
            "of_ideal_most": max(ratios),
            "held_gb": self.held / 1e9,
            "peak_gb": None if self.peak is None else self.peak / 1e9,
        }


def race(
    course: Course, contestants: Sequence[Contestant], rounds: int, tell: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Rows of the table: the model as it is, then each contestant; the first round warms up and does not count."""
    plain = Times()
    times = {contestant.name: Times() for contestant in contestants}
    steps = len(course.calls)
    for number in range(rounds + 1):
        for contestant in contestants:
            before = _lap(course, course.calls[:1])[0][0]
            base = live_bytes()
            _free_peak(course.device)
            with contestant.enabled(course.model):
                laps = _lap(course, course.calls)
                held = live_bytes() - base
            after = _lap(course, course.calls[-1:])[0][0]
            if number:
                record = times[contestant.name]
                record.full += [seconds for seconds, worked in laps if worked]
                record.cached += [seconds for seconds, worked in laps if not worked]
                record.nfc = sum(worked for _, worked in laps)
                record.rounds.append(sum(seconds for seconds, _ in laps))
                record.ideals.append(record.nfc * (before + after) / 2)
                record.held, record.peak = max(held, record.held), _peak(course.device)
                plain.full += [before, after]
            tell(contestant.name)
    once = statistics.median(plain.full)
    plain.rounds, plain.ideals, plain.nfc = [steps * once], [steps * once], steps
    return [plain.row("as it is", steps, once), *(times[name].row(name, steps, once) for name in times)]


COLUMNS = (
    ("method", "method", ""),
    ("full", "nfc", ""),
    ("full step, ms", "full_ms", ".1f"),
    ("cached step, ms", "cached_ms", ".2f"),
    ("of a full step", "cached_share", ".1%"),
    ("run, s", "seconds", ".2f"),
    ("of the ideal", "of_ideal", ".3f"),
    ("held, GB", "held_gb", ".3f"),
    ("peak, GB", "peak_gb", ".2f"),
)
"""Of the table: heading, name in a row, format."""


def write(
    out: Path, rows: Sequence[Mapping[str, Any]], about: str, columns: Sequence[tuple[str, str, str]]
) -> list[Path]:
    """Write table.json and table.md into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "table.json", {"about": about, "torch": torch.__version__, "rows": rows})
    named = [{heading: row[name] for heading, name, _ in columns} for row in rows]
    forms = {heading: form for heading, _, form in columns}
    files.write_whole(out / "table.md", f"{about}\n\n{files.markdown_table(named, forms)}".encode())
    return [out / "table.json", out / "table.md"]


@torch.no_grad()
def _lap(course: Course, calls: Sequence[dict[str, Any]]) -> list[tuple[float, bool]]:
    """Seconds of each step, and whether the last block worked: a layer within its last unit was called."""
    worked: list[bool] = []
    modules = course.spec.units(course.model)[-1].modules
    layer = next(
        child
        for module in modules.values()
        for child in module.modules()
        if isinstance(child, nn.Linear) and all(child is not unit for unit in modules.values())
    )
    watch = layer.register_forward_hook(lambda *_: worked.append(True))
    laps = []
    try:
        for call in calls:
            worked.clear()
            began = _now(course.device)
            course.model(**call, return_dict=False)
            laps.append((_now(course.device) - began, bool(worked)))
    finally:
        watch.remove()
    return laps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def live_bytes() -> int:
    """Bytes of all tensors that are alive; memory that several share counts once."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, nn.Parameter) and not value.is_meta:
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _free_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def methods_at(entries: Sequence[Entry], granularities: Sequence[str]) -> list[tuple[str, Method]]:
    """Each method at each granularity, with a name that says both.

    Raises:
        ValueError: a method without caching, or an unknown granularity.
    """
    found = []
    for granularity in granularities:
        for entry in entries:
            method = method_from_config({**with_any_budget(entry.config), "granularity": granularity})
            if method.name == "full":
                raise ValueError("full compute is in the table in any case: leave it out of --methods")
            found.append((f"{entry.name}, {granularity}", method))
    return found


def contestants_for(
    spec: ModelSpec, methods: Sequence[tuple[str, Method]], interval: int, peers: bool
) -> list[Contestant]:
    """The methods with the full steps of an interval, then the peers."""
    found = [ours(name, method, interval) for name, method in methods]
    if peers:
        found += [diffusers_taylorseer(order, interval, spec) for order in (1, 2)]
    return found
