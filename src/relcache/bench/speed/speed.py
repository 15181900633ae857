"""Measure time and memory of full and cached steps on one model, for methods at each granularity and rivals.

In each round every contestant runs the same denoising loop on the same inputs, all in one process. So ratios stay
valid if the machine's speed drifts. The ideal is the number of full steps times the time of a step of the plain model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from relcache.bench import files
from relcache.bench.rivals.base import Rival
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.sampling.budgets import TriedThresholds, count_full_steps, interval_for, with_any_budget
from relcache.bench.sampling.scale import Scale
from relcache.bench.sampling.stopwatch import Clock, timed
from relcache.bench.speed.contestants import Contestant, NamedMethod, at_interval, ours, rival_at
from relcache.bench.speed.subjects import Course
from relcache.bench.tables import Columns, Rows, markdown_table
from relcache.methods import method_from_config

PLAIN = Contestant("as it is", lambda model: nullcontext())


@dataclass
class Times:
    """Seconds of a contestant's full steps, cached steps and rounds, and of the ideal in each round."""

    full: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    ideals: list[float] = field(default_factory=list)
    nfc: int = 0
    held: int = 0
    peak: int | None = None

    def row(self, contestant: Contestant, steps: int, plain: float, target: int | None = None) -> dict[str, Any]:
        """Return a row of the table; `plain` is the seconds of a step of the plain model."""
        ratios = [seconds / ideal for seconds, ideal in zip(self.rounds, self.ideals, strict=True)]
        return {
            "method": contestant.name,
            "rival": contestant.is_rival,
            "nfc_target": target,
            "nfc": self.nfc,
            "interval": contestant.budget.get("interval"),
            "threshold": contestant.budget.get("threshold"),
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
    course: Course,
    contestants: Sequence[Contestant],
    rounds: int,
    tell: Callable[[str], None] = lambda text: None,
    target: int | None = None,
) -> list[dict[str, Any]]:
    """Return rows of the plain model and each contestant. A first round warms up and weighs the tensors kept.

    `target` is the wanted number of full steps.
    """
    plain = Times()
    times = {contestant.name: Times() for contestant in contestants}
    steps = len(course.calls)
    with Scale() as scale:
        for contestant in contestants:
            base = scale.weigh()
            _, held = _run_loop(course, contestant, scale.weigh)
            times[contestant.name].held = held - base
            tell(contestant.name)
    for _ in range(rounds):
        for contestant in contestants:
            around = _lap(course, course.calls[:2])
            _reset_peak(course.device)
            laps, _ = _run_loop(course, contestant)
            around += _lap(course, course.calls[-2:])
            once = statistics.median(seconds for seconds, _ in around)
            record = times[contestant.name]
            record.full += [seconds for seconds, worked in laps if worked]
            record.cached += [seconds for seconds, worked in laps if not worked]
            record.nfc = sum(worked for _, worked in laps)
            record.rounds.append(sum(seconds for seconds, _ in laps))
            record.ideals.append(record.nfc * once)
            record.peak = _peak(course.device)
            plain.full += [seconds for seconds, _ in around]
            tell(contestant.name)
    once = statistics.median(plain.full)
    plain.rounds, plain.ideals, plain.nfc = [steps * once], [steps * once], steps
    return [
        plain.row(PLAIN, steps, once),
        *(times[rival.name].row(rival, steps, once, target) for rival in contestants),
    ]


COLUMNS = (
    ("method", "method", ""),
    ("full", "nfc", ""),
    ("full step, ms", "full_ms", ".1f"),
    ("cached step, ms", "cached_ms", ".2f"),
    ("of a full step", "cached_share", ".1%"),
    ("run, s", "seconds", ".2f"),
    ("of the ideal", "of_ideal", ".3f"),
    ("least", "of_ideal_least", ".3f"),
    ("most", "of_ideal_most", ".3f"),
    ("held, GB", "held_gb", ".3f"),
    ("peak, GB", "peak_gb", ".2f"),
)
"""Columns of the table: heading, key in a row, format."""


def write_table(out: Path, rows: Rows, about: str, columns: Columns) -> list[Path]:
    """Write table.json and table.md into the folder `out`."""
    files.write_json(out / "table.json", {"about": about, "torch": torch.__version__, "rows": rows})
    files.write_whole(out / "table.md", f"{about}\n\n{markdown_table(rows, columns)}".encode())
    return [out / "table.json", out / "table.md"]


def _run_loop(
    course: Course, contestant: Contestant, weigh: Callable[[], int] = lambda: 0
) -> tuple[list[tuple[float, bool]], int]:
    """Run all calls by a contestant; return their laps, and the bytes weighed before it is disabled."""
    with contestant.enabled(course.model) as handle:
        return _lap(course, course.calls, handle), weigh()


@torch.no_grad()
def _lap(course: Course, calls: Sequence[dict[str, Any]], handle: Any = None) -> list[tuple[float, bool]]:
    """Return the seconds of each call, and whether it was full.

    A hook in a compiled model would be compiled too, so there `handle` says which calls were full.
    """
    if not course.compiled:
        with timed(course.model, course.spec) as laps:
            for call in calls:
                course.model(**call, return_dict=False)
        return laps.each
    clock, moments = Clock(course.device), []
    for call in calls:
        began = clock.now()
        course.model(**call, return_dict=False)
        moments.append((began, clock.now()))
    full = range(len(calls)) if handle is None else handle.full_steps
    return [(clock.between(*moment), step in full) for step, moment in enumerate(moments)]


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def contestants_for(
    course: Course,
    methods: Sequence[NamedMethod],
    rivals: Sequence[Rival],
    nfc: int,
    known: dict[str, TriedThresholds],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Contestant]:
    """Return methods and rivals at the number of full steps nearest to `nfc` that an interval gives.

    `known` keeps the tried thresholds by rival.
    """
    steps = len(course.calls)
    interval = interval_for(nfc, steps)
    found = [
        ours(name, at_interval(method_from_config(with_any_budget(config)), interval, steps), steps)
        for name, config in methods
    ]

    def count(contestant: Contestant) -> float:
        tell(f"{contestant.name}: finding the threshold")
        with contestant.enabled(course.model):
            return sum(full for _, full in _lap(course, course.calls))

    for rival in rivals:
        tried = known.setdefault(rival.name, TriedThresholds())
        found.append(rival_at(rival, count_full_steps(interval, steps), steps, count, tried))
    return found


def timeable(course: Course) -> list[Rival]:
    """Return the rivals to time on a course: those whose option decides full steps, without calibration.

    Raises:
        ValueError: a package is not installed, or no rival can run on the model.
    """
    chosen = [
        rival for rival in all_rivals().values() if rival.budget in ("interval", "threshold") and not rival.calibrates
    ]
    if not chosen:
        raise ValueError("--peers: other caches are in the package relcache-rivals, which is not installed")
    reasons = {rival.title: rival.unfit(course.model) for rival in chosen}
    if missing := next((reason for reason in reasons.values() if "pip install" in reason), None):
        raise ValueError(f"--peers: {missing}")
    fit = [rival for rival in chosen if not reasons[rival.title]]
    if not fit:
        raise ValueError("--peers: " + "; ".join(f"{title}: {reason}" for title, reason in reasons.items()))
    return fit
