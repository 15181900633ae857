"""Requests on plans of full steps: judged by their pictures, or measured on the way.

Knows `enable`, and schedulers by their interface.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relcache.api import enable
from relcache.calibration.probe import between_updates
from relcache.calibration.progress import Progress
from relcache.calibration.table import Errors, neighbours
from relcache.forecasters import Reuse
from relcache.method import Method
from relcache.schedules import Always, Plan

LENGTHS = (2, 3, 5, 8)  # of the gaps that are measured; three times the mean gap beside them
GAINS = 6  # steps after which the gain of an error is measured
HIGHEST = 100.0  # dB of pictures that are the same; those that are not finite have as many below 0
LEAST = 0.01  # dB that a swap has to gain
Tell = Callable[[str, int, int], None]
Call = Callable[[], Tensor]
Between = Callable[[int, int, Tensor], "Tensor | None"]  # call, step, sample


class Trials:
    """The same few calls of one pipeline, again and again on other plans of full steps.

    Args:
        pipe: the pipeline.
        calls: each makes pictures, (n, …), and is one request.
        base: the method whose schedule is replaced.
        known: what has been measured, and where it is kept.
        tell: called with what is done, and how many of how many parts are.

    Raises:
        ValueError: calls of different numbers of steps, or pictures that are not finite.
    """

    def __init__(self, pipe: Any, calls: Sequence[Call], base: Method, known: Progress, tell: Tell):
        self._pipe, self._calls, self._base, self._tell = pipe, calls, base, tell
        self._known, self._history = known, base.forecaster.full_steps_needed
        self._path: dict[tuple[int, int], Tensor] = {}
        full, steps = Method(Reuse(), Always(), name="full compute"), set()
        self.reference: list[Tensor] = []
        for place in range(len(calls)):
            tell("full compute", place, len(calls))
            made, count, updates = self._call(place, full, self._keep)
            self.reference.append(made)
            steps.add((count, updates))
        counts = {count for count, _ in steps}
        if len(counts) > 1:
            raise ValueError(f"the calls have different numbers of steps, {sorted(counts)}: calibrate them one by one")
        self.steps = counts.pop()
        if not all(bool(torch.isfinite(pictures).all()) for pictures in self.reference):
            raise ValueError("full compute makes pictures that are not finite: there is nothing to compare with")
        self.can_be_measured = steps == {(self.steps, self.steps)}
        known.begin(signature(self.reference), self.steps)

    def _keep(self, call: int, step: int, value: Tensor) -> None:
        self._path[call, step] = value.to("cpu", copy=True)

    def _call(self, place: int, method: Method, between: Between | None = None) -> tuple[Tensor, int, int]:
        """The pictures of a call by a method, its number of steps, and the number of scheduler updates that were seen.

        The global random generators are seeded, so that each call repeats, and are restored afterwards.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(place)
            handle = stack.enter_context(enable(self._pipe, method))
            seen = 0
            if between is not None:
                own = stack.enter_context(
                    between_updates(self._pipe.scheduler, lambda step, value: between(place, step, value))
                )
            made = self._calls[place]()
            if between is not None:
                seen = own.count
            return made, handle.report().steps, seen

    def search(self, full_steps: int, growing: tuple[int, ...], trials: int) -> tuple[int, ...]:
        """The best plan that is found."""
        starts = [growing]
        errors = self.errors(max(2, self.steps // full_steps)) if self.can_be_measured else None
        if errors is not None:
            starts.append(errors.cheapest(full_steps))
        self._tell("trials", len(self._known.trials), max(trials, len(self._known.trials)))
        best, improved = max(starts, key=self.judge), True
        while improved:
            improved = False
            for plan in neighbours(best, self.steps, self._history):
                if not self._is_judged(plan) and self.tried >= trials:
                    return best
                value = self.judge(plan)
                self._tell(f"trials: {self.judge(best):.2f} dB", self.tried, max(trials, self.tried))
                if value > self.judge(best) + LEAST:
                    best, improved = plan, True
                    break
        return best

    @property
    def tried(self) -> int:
        """How many plans have been judged."""
        return len(self._known.trials)

    def _is_judged(self, plan: Sequence[int]) -> bool:
        return json.dumps(list(plan)) in self._known.trials

    def judge(self, plan: tuple[int, ...]) -> float:
        """Mean PSNR in dB of the pictures by this plan to those of full compute."""
        name = json.dumps(list(plan))
        if name not in self._known.trials:
            made = [self._call(place, self._on(plan))[0] for place in range(len(self._calls))]
            self._known.trials[name] = decibels(made, self.reference)
            self._known.write()
        return self._known.trials[name]

    def _on(self, plan: Sequence[int], **changes: Any) -> Method:
        return replace(self._base, schedule=Plan(plan, self.steps), name="", **changes)

    # Errors on the exact path

    def errors(self, mean_gap: int) -> Errors | None:
        """What gaps cost, by measurement; None where requests are too short for any."""
        begin, steps = self._history, self.steps
        lengths = sorted(length for length in {*LENGTHS, 3 * mean_gap} if length < steps - begin)
        if not lengths:
            return None
        middle = min(lengths, key=lambda length: abs(length - mean_gap))
        shares = [(place / (GAINS - 1)) ** 1.5 for place in range(GAINS)]
        ends = sorted({round(begin + 1 + (steps - begin - 3) * share) for share in shares})
        runs = [("gaps", length, first) for length in lengths for first in range(begin, begin + length)]
        runs += [("gain", middle, end) for end in ends]
        for place, (kind, length, first) in enumerate(runs):
            self._tell("errors of gaps" if kind == "gaps" else "what becomes of errors", place, len(runs))
            name = f"{kind}:{length}:{first}"
            if name not in self._known.parts:
                self._known.parts[name] = self._gaps(length, first) if kind == "gaps" else self._gain(length, first)
                self._known.write()
        gaps: dict[int, dict[int, float]] = {length: {} for length in lengths}
        firsts: dict[int, float] = {}
        tails: dict[int, list[float]] = {}
        for length in lengths:
            for first in range(begin, begin + length):
                part = self._known.parts[f"gaps:{length}:{first}"]
                found = {int(step): value for step, value in part["gaps"].items()}
                firsts[first] = found.pop(first)
                gaps[length] |= found
                tails.setdefault(max(found, default=first), []).append(part["tail"])
        gains = {end: self._known.parts[f"gain:{middle}:{end}"] for end in ends} | {steps - 1: 1.0}
        return Errors(
            steps,
            {length: ends for length, ends in gaps.items() if ends},
            firsts,
            {last: _mean(values) for last, values in tails.items()},
            gains,
            begin,
        )

    def _gaps(self, length: int, first: int, kept: dict[tuple[int, int], Tensor] | None = None) -> dict[str, Any]:
        """Errors of the gaps that end at `first` and every `length` steps after it, each from the exact sample."""
        plan = [*range(self._history), *range(first, self.steps, length)]
        found: dict[int, list[float]] = {}
        tail: list[float] = []

        def put_back(call: int, step: int, value: Tensor) -> Tensor | None:
            exact = self._path[call, step].to(value.device)
            if step == self.steps - 1:
                tail.append(energy(value - exact))
            if step not in plan:
                return None
            if step >= self._history:
                found.setdefault(step, []).append(energy(value - exact))
                if kept is not None:
                    kept[call, step] = (value - exact).cpu()
            return exact

        for place in range(len(self._calls)):
            self._call(place, self._on(plan), put_back)
        return {"gaps": {step: _mean(values) for step, values in found.items()}, "tail": _mean(tail)}

    def _gain(self, length: int, end: int) -> float:
        """How many times the error of a gap that ends at `end` is as large in the final sample, squared norms."""
        kept: dict[tuple[int, int], Tensor] = {}
        self._gaps(length, (end - self._history) % length + self._history, kept)
        before, after = [], []

        def lead(call: int, step: int, value: Tensor) -> Tensor | None:
            exact = self._path[call, step].to(value.device)
            if step == self.steps - 1:
                after.append(energy(value - exact))
            if step > end:
                return None
            if step < end:
                return exact
            wrong = kept[call, end].to(value.device)
            before.append(energy(wrong))
            return exact + wrong

        plan = sorted({*range(self._history), *range(end, self.steps)})
        for place in range(len(self._calls)):
            self._call(place, self._on(plan, corrector=None), lead)
        return sum(after) / max(sum(before), 1e-30)


def energy(value: Tensor) -> float:
    """Squared L2 norm."""
    return float(value.float().square().sum())


def decibels(made: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Mean PSNR in dB of pictures, (n, …) of each call, from -100 to 100; the peak is 1 for pictures in [0, 1]."""
    lowest, highest = min(float(each.min()) for each in reference), max(float(each.max()) for each in reference)
    peak = 1.0 if lowest >= 0 and highest <= 1 else max(highest - lowest, 1e-30)
    ratios = []
    for pictures, exact in zip(made, reference, strict=True):
        error = (pictures.float() - exact.float()).flatten(1).square().mean(1) / peak**2
        ratios.append((-10 * error.clamp(min=1e-30).log10()).nan_to_num(nan=-HIGHEST).clamp(-HIGHEST, HIGHEST))
    return float(torch.cat(ratios).mean())


def signature(pictures: Sequence[Tensor]) -> list[float]:
    """A few numbers that tell the pictures of other weights or seeds apart."""
    rows = [row.flatten().float() for each in pictures for row in each]
    return [round(float(value), 5) for row in rows for value in (row.mean(), *row[:: max(1, len(row) // 8)][:8])]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
