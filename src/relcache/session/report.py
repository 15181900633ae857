"""The report of a request, as a dataclass for JSON and as a readable table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import mean, median
from typing import Any

AS_FULL = "as fast as full compute by its own step times"


@dataclass(frozen=True)
class Report:
    """The report of a handle's last request.

    Attributes:
        method: name of the method.
        forecaster: the forecaster with its options.
        schedule: the schedule with its options.
        model: class of the transformer.
        units: number of units, `len(handle.units)`.
        steps: denoising steps so far; all branches of a step count as one.
        nfc: number of full steps.
        full_steps: indices of the full steps, from 0.
        signal: error of the predicted input at each step; None if the schedule did not need it.
        branches: names of the guidance branches.
        batch: rows of the transformer's batch: samples, times two where guidance doubles the batch.
        decision: whether one decision on a full step covers the whole batch.
        flops: floating point operations of the request, 2 per multiply-add; None if they could not be counted.
        linear_flops: `flops` without the products of attention, as papers count for larger models.
        full_flops: `flops` with every step full.
        cache_bytes: greatest size of the cache in bytes.
        device_bytes: greatest part of it on the device at once; with offload="cpu" the rest is in the host's memory.
        corrector: the corrector with its options; "none" if there was none.
        corrections: the full steps that ended a corrected gap, each with the relative size of the correction,
            ‖x̃ - x‖₂ / ‖x‖₂, mean over the batch.
        fallbacks: reasons for a forecast other than the method's own, and how often each occurred.
        notes: warnings and remarks.
        finer: times as many steps as the pipeline asked for.
        step_seconds: duration of each step that has ended, in seconds. Work until the next step begins counts, such as
            the scheduler's update. Empty if it could not be measured. Reports with other times are equal.
    """

    method: str
    forecaster: str
    schedule: str
    model: str
    units: int
    steps: int
    nfc: int
    full_steps: list[int]
    signal: list[float | None]
    branches: list[str]
    batch: int
    decision: str
    flops: int | None
    linear_flops: int | None
    full_flops: int | None
    cache_bytes: int
    device_bytes: int
    corrector: str = "none"
    corrections: list[tuple[int, float]] = field(default_factory=list)
    fallbacks: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    finer: int = 1
    step_seconds: list[float] = field(default_factory=list, compare=False)

    @property
    def seconds(self) -> float | None:
        """Seconds from the transformer's first call to the end of its last; None if not measured."""
        return sum(self.step_seconds) if self.step_seconds else None

    @property
    def speedup(self) -> float | None:
        """Speed of the steps relative to full compute with the steps asked for; None before a second full step.

        It is that of the median full and the median cached step, so that a first step that compiles does not count.
        """
        timed = {step: seconds for step, seconds in enumerate(self.step_seconds) if step}
        full = [seconds for step, seconds in timed.items() if step in self.full_steps]
        cached = [seconds for step, seconds in timed.items() if step not in self.full_steps]
        if not full:
            return None
        taken = median(full) * (len(full) + 1) + (median(cached) * len(cached) if cached else 0.0)
        return median(full) * len(self.step_seconds) / self.finer / taken

    def summary(self) -> str:
        """Return the request in a line: full steps, seconds, speed and corrections."""
        if not self.steps:
            return f"{self.method} on {self.model}: no request yet"
        parts = [f"{self.method} on {self.model}: {self.nfc} of {self.steps} steps full"]
        if self.seconds is not None:
            parts.append(f"{self.seconds:.3g} s")
        if self.speedup is not None:
            parts.append(f"{self.speedup:.2f} times {AS_FULL}")
        if self.corrections:
            sizes = [size for _, size in self.corrections]
            parts.append(f"{len(sizes)} gaps corrected by {mean(sizes):.2%} on average")
        return ", ".join(parts) + "".join(f"; {note}" for note in self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain lists, dictionaries, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.steps:
            return self.summary()
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _repr_html_(self) -> str:
        """Return the report as HTML, for notebooks: a figure of the steps, and a table."""
        from relcache.session.illustration import as_html

        return as_html(self)

    def rows(self) -> list[tuple[str, str]]:
        """Return the report as names and values, for a table."""
        rows = [
            ("method", self.method),
            ("forecaster", self.forecaster),
            ("schedule", self.schedule),
            ("model", f"{self.model}, {self.units} units cached"),
            ("steps", f"{self.nfc} full of {self.steps}"),
            ("full steps", " ".join(map(str, self.full_steps))),
            *self._time(),
            ("branches", f"{', '.join(self.branches)}; batch of {self.batch} rows; {self.decision}"),
        ]
        if self.flops is not None and self.full_flops:
            share = self.flops / self.full_flops
            rows.append(("FLOPs", f"{_number(self.flops)} of {_number(self.full_flops)} ({share:.1%})"))
        on_device = f", at most {_number(self.device_bytes, 'B')} of it on the device"
        is_split = self.device_bytes != self.cache_bytes
        rows.append(("cache", _number(self.cache_bytes, "B") + on_device * is_split))
        if self.corrections:
            steps, sizes = zip(*self.corrections, strict=True)
            rows.append(("corrected", f"by {self.corrector}, at steps {' '.join(map(str, steps))}"))
            rows.append(("", f"by {mean(sizes):.2%} of the sample on average, {max(sizes):.2%} at most"))
        errors = [f"{step}:{error:.3g}" for step, error in enumerate(self.signal) if error is not None]
        if errors:
            rows.append(("signal", " ".join(errors)))
        rows += [("fall-back", f"{reason}: {count}") for reason, count in self.fallbacks.items()]
        return rows + [("note", note) for note in self.notes]

    def _time(self) -> list[tuple[str, str]]:
        if self.seconds is None or self.speedup is None:
            return []
        return [
            ("time", f"{self.seconds:.3g} s, {self.speedup:.2f} times as fast as full compute by its own step times")
        ]


def _number(value: float, unit: str = "") -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()
