"""What a request did, as a dataclass that becomes JSON and as a readable table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class Report:
    """The last request of one handle.

    Attributes:
        method: name of the method.
        forecaster: the forecaster with its options.
        schedule: the schedule with its options.
        model: class of the transformer.
        modules: number of cached modules.
        steps: denoising steps so far, however many branches each had.
        nfc: number of full steps.
        full_steps: which steps were full, from 0.
        signal: error of the predicted input at each step; None where the schedule did not ask for it.
        branches: names of the guidance branches.
        batch: rows of the transformer's batch (samples, times two where guidance doubles the batch).
        decision: what one decision on a full step covers.
        flops: floating point operations of the request, 2 per multiply-add; None if they could not be counted.
        linear_flops: the same without the products of attention, as papers count the larger models.
        full_flops: `flops` with every step full.
        cache_bytes: most bytes that the cache held.
        device_bytes: most of them that lay on the device at once, where offload="cpu" keeps them in the host's memory.
        corrector: how gaps between full steps were made good, with its options; "none" if they were not.
        corrections: the full steps before which a gap was made good, each with the size of the correction relative to
            the sample: ‖x̃ - x‖₂ / ‖x‖₂, mean over the batch.
        fallbacks: how often something other than the method's own forecast was used, and why.
        notes: what else is worth knowing.
    """

    method: str
    forecaster: str
    schedule: str
    model: str
    modules: int
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

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries, strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.steps:
            return f"{self.method} on {self.model}: no request yet"
        rows = [
            ("method", self.method),
            ("forecaster", self.forecaster),
            ("schedule", self.schedule),
            ("model", f"{self.model}, {self.modules} modules cached"),
            ("steps", f"{self.nfc} full of {self.steps}"),
            ("full steps", " ".join(map(str, self.full_steps))),
            ("branches", f"{', '.join(self.branches)}; batch of {self.batch} rows; {self.decision}"),
        ]
        if self.flops is not None and self.full_flops:
            share = self.flops / self.full_flops
            rows.append(("FLOPs", f"{_number(self.flops)} of {_number(self.full_flops)} ({share:.1%})"))
        on_device = "" if self.device_bytes == self.cache_bytes else (
            f", at most {_number(self.device_bytes, 'B')} of it on the device"
        )  # fmt: skip
        rows.append(("cache", f"{_number(self.cache_bytes, 'B')}{on_device}"))
        if self.corrections:
            steps, sizes = zip(*self.corrections, strict=True)
            rows.append(("corrected", f"by {self.corrector}, at steps {' '.join(map(str, steps))}"))
            rows.append(("", f"by {mean(sizes):.2%} of the sample on average, {max(sizes):.2%} at most"))
        errors = [f"{step}:{error:.3g}" for step, error in enumerate(self.signal) if error is not None]
        if errors:
            rows.append(("signal", " ".join(errors)))
        rows += [("fall-back", f"{reason}: {count}") for reason, count in self.fallbacks.items()]
        rows += [("note", note) for note in self.notes]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _number(value: float, unit: str = "") -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()
