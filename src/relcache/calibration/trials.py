"""Requests on plans of full steps: judged by their pictures, or measured on the way.

Knows `enable`, and schedulers by their interface.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from relcache.api import enable
from relcache.calibration.probe import between_updates
from relcache.calibration.progress import Progress
from relcache.calibration.table import Errors, neighbours
from relcache.method import Method
from relcache.schedules import Plan

LENGTHS = (2, 3, 5, 8)  # of the gaps that are measured; three times the mean gap beside them
GAINS = 6  # steps after which the gain of an error is measured
HIGHEST = 100.0  # dB of pictures that are the same
LEAST = 0.01  # dB that a swap has to gain
Tell = Callable[[str, int, int], None]


class Trials:
    """Requests of one pipeline on plans of full steps: measured on the way, or judged by their pictures."""

    def __init__(self, pipe: Any, sample: Callable[[], Tensor], steps: int, base: Method, known: Progress, tell: Tell):
        self._pipe, self._sample, self._steps, self._base, self._tell = pipe, sample, steps, base, tell
        self.known, self._history = known, base.forecaster.full_steps_needed
        self._path: dict[tuple[int, int], Tensor] = {}
        self.problem: str | None = None
        tell("full compute", 0, 1)

        def keep(request: int, step: int, value: Tensor) -> None:
            self._path[request, step] = value.to("cpu", copy=True)

        with between_updates(pipe.scheduler, steps, keep) as updates:
            self.reference = sample()
        if not updates.count or updates.count % steps:
            self._path.clear()
            self.problem = f"{updates.count} updates of the pipeline's scheduler, not {steps} for each request"

    def search(self, full_steps: int, growing: tuple[int, ...], trials: int) -> tuple[int, ...]:
        """The best plan that is found."""
        starts = [growing]
        if self.problem is None:
            starts.append(self.errors(max(2, self._steps // full_steps)).cheapest(full_steps))
        best, tried = max(starts, key=self.judge), len(self.known.trials)
        improved = True
        while improved:
            improved = False
            for plan in neighbours(best, self._steps, self._history):
                if plan not in self._judged and tried >= trials:
                    return best
                value = self.judge(plan)
                tried = len(self.known.trials)
                self._tell(f"trials: {self.judge(best):.2f} dB", tried, max(trials, tried))
                if value > self.judge(best) + LEAST:
                    best, improved = plan, True
                    break
        return best

    @property
    def _judged(self) -> set[tuple[int, ...]]:
        return {tuple(json.loads(text)) for text in self.known.trials}

    def judge(self, plan: tuple[int, ...]) -> float:
        """Mean PSNR in dB of the pictures by this plan to those of full compute."""
        name = json.dumps(list(plan))
        if name not in self.known.trials:
            with enable(self._pipe, self._on(plan)):
                self.known.trials[name] = decibels(self._sample(), self.reference)
            self.known.write()
        return self.known.trials[name]

    def _on(self, plan: Sequence[int], **changes: Any) -> Method:
        return replace(self._base, schedule=Plan(plan), name="", **changes)

    # Errors on the exact path

    def errors(self, mean_gap: int) -> Errors:
        """Measure what gaps cost."""
        begin = self._history
        lengths = sorted({*LENGTHS, 3 * mean_gap} - {length for length in LENGTHS if length >= self._steps})
        middle = min(lengths, key=lambda length: abs(length - mean_gap))
        ends = [round(begin + 1 + (self._steps - begin - 3) * (place / (GAINS - 1)) ** 1.5) for place in range(GAINS)]
        runs = [("gaps", length, first) for length in lengths for first in range(begin, begin + length)]
        runs += [("gain", middle, end) for end in ends]
        for place, (kind, length, first) in enumerate(runs):
            self._tell("errors of gaps" if kind == "gaps" else "what becomes of errors", place, len(runs))
            name = f"{kind}:{length}:{first}"
            if name not in self.known.parts:
                self.known.parts[name] = self._gaps(length, first) if kind == "gaps" else self._gain(length, first)
                self.known.write()
        gaps: dict[int, dict[int, float]] = {length: {} for length in lengths}
        firsts: dict[int, float] = {}
        tails: dict[int, list[float]] = {}
        for kind, length, first in runs:
            if kind == "gain":
                continue
            found = {int(step): value for step, value in self.known.parts[f"{kind}:{length}:{first}"]["gaps"].items()}
            firsts[first] = found.pop(first)
            gaps[length] |= found
            last = max(found, default=first)
            tails.setdefault(last, []).append(self.known.parts[f"{kind}:{length}:{first}"]["tail"])
        gains = {end: self.known.parts[f"gain:{middle}:{end}"] for end in ends} | {self._steps - 1: 1.0}
        return Errors(
            self._steps,
            {length: ends for length, ends in gaps.items() if ends},
            firsts,
            {last: sum(values) / len(values) for last, values in tails.items()},
            gains,
            begin,
        )

    def _gaps(self, length: int, first: int, kept: dict[tuple[int, int], Tensor] | None = None) -> dict[str, Any]:
        """Errors of the gaps that end at `first` and every `length` steps after it, each from the exact sample."""
        plan = [*range(self._history), *range(first, self._steps, length)]
        found: dict[int, list[float]] = {}
        tail: list[float] = []

        def put_back(request: int, step: int, value: Tensor) -> Tensor | None:
            exact = self._path[request, step].to(value.device)
            if step == self._steps - 1:
                tail.append(energy(value - exact))
            if step not in plan:
                return None
            if step >= self._history:
                found.setdefault(step, []).append(energy(value - exact))
                if kept is not None:
                    kept[request, step] = (value - exact).cpu()
            return exact

        with enable(self._pipe, self._on(plan)), between_updates(self._pipe.scheduler, self._steps, put_back):
            self._sample()
        return {"gaps": {step: _mean(values) for step, values in found.items()}, "tail": _mean(tail)}

    def _gain(self, length: int, end: int) -> float:
        """How many times the error of a gap that ends at `end` is as large in the final sample, squared norms."""
        kept: dict[tuple[int, int], Tensor] = {}
        self._gaps(length, (end - self._history) % length + self._history, kept)
        before, after = [], []

        def lead(request: int, step: int, value: Tensor) -> Tensor | None:
            exact = self._path[request, step].to(value.device)
            if step == self._steps - 1:
                after.append(energy(value - exact))
            if step > end:
                return None
            if step < end:
                return exact
            wrong = kept[request, end].to(value.device)
            before.append(energy(wrong))
            return exact + wrong

        plan = sorted({*range(self._history), *range(end, self._steps)})
        method = self._on(plan, corrector=None)
        with enable(self._pipe, method), between_updates(self._pipe.scheduler, self._steps, lead):
            self._sample()
        return sum(after) / max(sum(before), 1e-30)


def energy(value: Tensor) -> float:
    """Squared L2 norm."""
    return float(value.float().square().sum())


def decibels(pictures: Tensor, reference: Tensor) -> float:
    """Mean PSNR in dB over the first dimension, at most 100; the peak is 1 for pictures in [0, 1]."""
    within = float(reference.min()) >= 0 and float(reference.max()) <= 1
    peak = 1.0 if within else max(float(reference.max() - reference.min()), 1e-30)
    error = (pictures.float() - reference.float()).flatten(1).square().mean(1) / peak**2
    return float((-10 * error.clamp(min=10 ** (-HIGHEST / 10)).log10()).mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
