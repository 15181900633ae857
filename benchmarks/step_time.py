"""Time a full step and a cached step, and the forecast's share of the cached step.

    python benchmarks/step_time.py --out benchmarks/results/step-time.json

All methods take turns in one process and run the same loop with the same full steps, round after round. So the ratios
hold if the machine's speed drifts. A step is one call of the transformer on a guidance batch (rows = 2 x samples).
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from shared import parser_for
from torch import Tensor

import relcache
from relcache.bench import files
from relcache.bench.sampling.pipelines import DEFAULT_MODEL, load_pipeline
from relcache.forecasters.base import Forecast, Forecaster
from relcache.forecasters.expansion import Expansion

FULL_STEPS = (0, 1, 5, 9)
STEPS = 13
FORECASTERS = {
    "reuse": relcache.Reuse(),
    "taylor, m=1": relcache.Taylor(1),
    "taylor, m=2": relcache.Taylor(2),
    "relational, m=1": relcache.Relational(1),
    "relational, m=2": relcache.Relational(2),
}


class Timed(Forecaster):
    """A forecaster that sums the time of its forecasts."""

    def __init__(self, inner: Forecaster):
        self.inner, self.seconds = inner, 0.0

    @property
    def expansion(self) -> Expansion:
        return self.inner.expansion

    def coefficients(self, steps: Sequence[int], step: int) -> list[float]:
        return self.inner.coefficients(steps, step)

    def update(self, state: Any, steps: Sequence[int], input: Tensor, output: Tensor) -> Any:
        return self.inner.update(state, steps, input, output)

    def forecast(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        began = now(input.device)
        result = self.inner.forecast(state, coefficients, input)
        self.seconds += now(input.device) - began
        return result


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def measure(model: torch.nn.Module, forecaster: Forecaster | None, rows: int) -> dict[str, list[float]]:
    """Return the seconds of full and cached steps, and of the forecasts in each cached step, in one run."""
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    size, channels = model.config.sample_size, model.config.in_channels
    sample = torch.randn(rows, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    labels = torch.tensor([i % 10 for i in range(rows)], device=device)
    timesteps = torch.linspace(999, 500, STEPS, device=device).long()
    seconds: dict[str, list[float]] = {"full": [], "cached": [], "forecast": []}
    timed = Timed(forecaster) if forecaster else None
    handle = relcache.enable(model, forecaster=timed, schedule=relcache.Plan(FULL_STEPS)) if timed else None
    for step, timestep in enumerate(timesteps):
        before = timed.seconds if timed else 0.0
        began = now(device)
        output = model(sample, timestep=timestep.expand(rows), class_labels=labels).sample
        elapsed = now(device) - began
        if timed is None or step in FULL_STEPS:
            seconds["full"].append(elapsed)
        else:
            seconds["cached"].append(elapsed)
            seconds["forecast"].append(timed.seconds - before)
        sample = sample - 0.02 * output[:, :channels]
    if handle:
        assert handle.report().full_steps == list(FULL_STEPS)
        handle.disable()
    return seconds


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--samples", type=int, default=16, help="samples; guidance doubles the rows")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    model = load_pipeline(options.model, options.device, options.dtype).transformer
    rows = 2 * options.samples
    gathered = {name: {"full": [], "cached": [], "forecast": []} for name in ["not enabled", *FORECASTERS]}
    for round_number in range(options.rounds + 1):
        for name, kinds in gathered.items():
            seconds = measure(model, FORECASTERS.get(name), rows)
            if round_number:  # the first round warms up
                for kind in kinds:
                    kinds[kind] += seconds[kind]

    reference = statistics.median(gathered["not enabled"]["full"])
    table = []
    print("| method | full step, ms | ratio | cached step, ms | of a full step | forecast's share of it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, kinds in gathered.items():
        full = statistics.median(kinds["full"])
        row = {"method": name, "full_ms": full * 1e3, "full_ratio": full / reference}
        if kinds["cached"]:
            cached, forecast = statistics.median(kinds["cached"]), statistics.median(kinds["forecast"])
            row |= {"cached_ms": cached * 1e3, "cached_ratio": cached / reference, "forecast_share": forecast / cached}
            tail = f"{cached * 1e3:.2f} | {cached / reference:.1%} | {forecast / cached:.1%}"
        else:
            tail = "– | – | –"
        table.append(row)
        print(f"| {name} | {full * 1e3:.2f} | {full / reference:.3f} | {tail} |")
    if options.out:
        about = {
            "model": options.model,
            "rows": rows,
            "rounds": options.rounds,
            "dtype": options.dtype,
            "device": torch.cuda.get_device_name() if next(model.parameters()).is_cuda else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        files.write_json(options.out, {"about": about, "rows": table})


if __name__ == "__main__":
    main()
