"""Run requests on plans of full steps: judge their final pictures, or measure errors at each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from relcache.api import enable
from relcache.calibration.probe import Updates, between_updates
from relcache.calibration.progress import Progress
from relcache.calibration.table import Errors, neighbours
from relcache.forecasters import Reuse
from relcache.method import Method
from relcache.schedules import Always, Plan

LENGTHS = (2, 3, 5, 8)  # of measured gaps, besides three times the mean gap
GAINS = 6  # number of steps at which the gain of an error is measured
HIGHEST = 100.0  # dB of equal pictures; pictures that are not finite have -100 dB
LEAST = 0.01  # dB that a better plan has to gain
Tell = Callable[[str, int, int], None]  # activity, parts done, number of parts
PictureCall = Callable[[], Tensor]  # one request; returns its pictures (n, …)
Between = Callable[[int, int, Tensor], "Tensor | None"]  # call, step, sample


class Trials:
    """The same few calls of one pipeline on many plans of full steps.

    `base` is the method to run with each plan; `known` keeps all measurements.

    Raises:
        ValueError: the calls have different numbers of steps, or pictures that are not finite.
    """

    def __init__(self, pipe: Any, calls: Sequence[PictureCall], base: Method, known: Progress, tell: Tell):
        self._pipe, self._calls, self._base, self._tell = pipe, calls, base, tell
        self._known, self._history = known, base.forecaster.full_steps_needed
        self._path: dict[tuple[int, int], Tensor] = {}
        full, steps = Method(Reuse(), Always(), name="full compute"), set()
        self.reference: list[Tensor] = []
        for index in range(len(calls)):
            tell("full compute", index, len(calls))
            pictures, count, updates = self._call(index, full, self._keep)
            self.reference.append(pictures)
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

    def _call(self, index: int, method: Method, between: Between | None = None) -> tuple[Tensor, int, int]:
        """Make a call with a method; return its pictures (n, …), its steps, and the number of updates watched.

        Seed the global random generators, so that each call repeats, and restore them afterwards.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            torch.manual_seed(index)
            handle = stack.enter_context(enable(self._pipe, method))
            updates = Updates()
            if between is not None:
                updates = stack.enter_context(between_updates(self._pipe.scheduler, partial(between, index)))
            return self._calls[index](), handle.report().steps, updates.count

    def search(self, full_steps: int, growing: tuple[int, ...], trials: int) -> tuple[int, ...]:
        """Return the best plan found; stop after `trials` judged plans, or when no neighbour is better."""
        starts = [growing]
        errors = self.errors(max(2, self.steps // full_steps)) if self.can_be_measured else None
        if errors is not None:
            starts.append(errors.cheapest(full_steps))
        self._tell("trials", len(self._known.trials), max(trials, len(self._known.trials)))
        best, improved = max(starts, key=self.judge), True
        while improved:
            improved = False
            for plan in neighbours(best, self.steps, self._history):
                judged = self._known.trials
                if json.dumps(plan) not in judged and len(judged) >= trials:
                    return best
                value = self.judge(plan)
                self._tell(f"trials: {self.judge(best):.2f} dB", len(judged), max(trials, len(judged)))
                if value > self.judge(best) + LEAST:
                    best, improved = plan, True
                    break
        return best

    def judge(self, plan: tuple[int, ...]) -> float:
        """Return the mean PSNR in dB of the plan's pictures to full compute's."""
        name = json.dumps(plan)
        if name not in self._known.trials:
            pictures = [self._call(index, self._with_plan(plan))[0] for index in range(len(self._calls))]
            self._known.trials[name] = decibels(pictures, self.reference)
            self._known.write()
        return self._known.trials[name]

    def _with_plan(self, plan: Sequence[int], **changes: Any) -> Method:
        return replace(self._base, schedule=Plan(plan, self.steps), name="", **changes)

    # Errors on the exact path

    def errors(self, mean_gap: int) -> Errors | None:
        """Measure the errors of gaps and their gains; return None if requests are too short for any gap."""
        begin, steps = self._history, self.steps
        lengths = sorted(length for length in {*LENGTHS, 3 * mean_gap} if length < steps - begin)
        if not lengths:
            return None
        middle = min(lengths, key=lambda length: abs(length - mean_gap))
        shares = [(index / (GAINS - 1)) ** 1.5 for index in range(GAINS)]
        ends = sorted({round(begin + 1 + (steps - begin - 3) * share) for share in shares})
        runs = [("gaps", length, first) for length in lengths for first in range(begin, begin + length)]
        runs += [("gain", middle, end) for end in ends]
        for index, (kind, length, first) in enumerate(runs):
            self._tell("errors of gaps" if kind == "gaps" else "gains of errors", index, len(runs))
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
                errors = {int(step): value for step, value in part["gaps"].items()}
                firsts[first] = errors.pop(first)
                gaps[length] |= errors
                tails.setdefault(max(errors, default=first), []).append(part["tail"])
        gains = {end: self._known.parts[f"gain:{middle}:{end}"] for end in ends} | {steps - 1: 1.0}
        return Errors(
            steps,
            {length: ends for length, ends in gaps.items() if ends},
            firsts,
            {last: fmean(values) for last, values in tails.items()},
            gains,
            begin,
        )

    def _gaps(self, length: int, first: int, kept: dict[tuple[int, int], Tensor] | None = None) -> dict[str, Any]:
        """Measure the gaps that end at `first` and every `length` steps after it, each from the exact sample."""
        plan = [*range(self._history), *range(first, self.steps, length)]
        errors: dict[int, list[float]] = {}
        tail: list[float] = []

        def restore(call: int, step: int, value: Tensor) -> Tensor | None:
            exact = self._path[call, step].to(value.device)
            if step == self.steps - 1:
                tail.append(energy(value - exact))
            if step not in plan:
                return None
            if step >= self._history:
                errors.setdefault(step, []).append(energy(value - exact))
                if kept is not None:
                    kept[call, step] = (value - exact).cpu()
            return exact

        for index in range(len(self._calls)):
            self._call(index, self._with_plan(plan), restore)
        return {"gaps": {step: fmean(values) for step, values in errors.items()}, "tail": fmean(tail)}

    def _gain(self, length: int, end: int) -> float:
        """Return the growth factor, until the final sample, of the squared error of a gap that ends at `end`."""
        kept: dict[tuple[int, int], Tensor] = {}
        self._gaps(length, (end - self._history) % length + self._history, kept)
        before, after = [], []

        def add_error(call: int, step: int, value: Tensor) -> Tensor | None:
            exact = self._path[call, step].to(value.device)
            if step == self.steps - 1:
                after.append(energy(value - exact))
            if step > end:
                return None
            if step < end:
                return exact
            error = kept[call, end].to(value.device)
            before.append(energy(error))
            return exact + error

        plan = sorted({*range(self._history), *range(end, self.steps)})
        for index in range(len(self._calls)):
            self._call(index, self._with_plan(plan, corrector=None), add_error)
        return sum(after) / max(sum(before), 1e-30)


def energy(value: Tensor) -> float:
    """Return the squared L2 norm."""
    return float(value.float().square().sum())


def decibels(pictures: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the mean PSNR in dB, from -100 to 100, of each call's pictures (n, …); the peak is 1 for [0, 1]."""
    lowest = min(float(pictures.min()) for pictures in reference)
    highest = max(float(pictures.max()) for pictures in reference)
    peak = 1.0 if lowest >= 0 and highest <= 1 else max(highest - lowest, 1e-30)
    ratios = []
    for own, exact in zip(pictures, reference, strict=True):
        error = (own.float() - exact.float()).flatten(1).square().mean(1) / peak**2
        ratios.append((-10 * error.clamp(min=1e-30).log10()).nan_to_num(nan=-HIGHEST).clamp(-HIGHEST, HIGHEST))
    return float(torch.cat(ratios).mean())


def signature(pictures: Sequence[Tensor]) -> list[float]:
    """Return a few numbers that distinguish pictures (n, …) of other weights or seeds."""
    rows = [row.flatten().float() for batch in pictures for row in batch]
    return [round(float(value), 5) for row in rows for value in (row.mean(), *row[:: max(1, len(row) // 8)][:8])]
