"""Time a forecast against a copy of the bytes that it must touch.

    python benchmarks/forecast_cost.py --out benchmarks/results/forecast-cost.json

A forecast reads each term of the stack once and writes its output once. RFE also reads the inputs now and at the last
full step. The copy reads half as many bytes and writes the other half. Copy and forecasts take turns in one process,
over so many units that the processor's cache keeps nothing between rounds. The forecast is timed in plain and in
compiled code. The update of a full step is timed against the same copy. Shapes are those of a module of DiT-XL/2 with
256 tokens and a batch of 8, and of FLUX with 1024 tokens.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from shared import about, parser_for
from torch import Tensor

from relcache import Relational, Taylor
from relcache.bench import files
from relcache.forecasters.base import Forecaster

SHAPES = {"DiT-XL/2": (8, 256, 1152), "FLUX": (1, 1024, 3072)}
FORECASTERS: dict[str, Forecaster] = {
    "taylor, m=1": Taylor(1),
    "taylor, m=2": Taylor(2),
    "relational, m=1": Relational(1),
    "relational, m=2": Relational(2),
}
STEPS = (0, 4, 8)
CACHED = 10


def measure(
    forecaster: Forecaster, shape: tuple[int, ...], options: argparse.Namespace
) -> tuple[dict[str, list[float]], int]:
    """Return the seconds per unit in each round, by operation, and the bytes that a forecast must touch."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    generator = torch.Generator(device).manual_seed(0)

    def features() -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    inputs, outputs, present = ([features() for _ in range(options.units)] for _ in range(3))
    states, updated, steps = [], [], ()
    for _ in range(options.units):
        state, steps = None, ()
        for step in STEPS:
            steps = (step, *steps)
            state = forecaster.update(state, steps, features(), features())
        states.append(state)
        updated.append(forecaster.update(None, (0,), features(), features()))
    order = forecaster.expansion.order
    touched = order + 2 + 2 * isinstance(forecaster, Relational)  # tensors of this shape
    sources = [torch.randn(touched * features().numel() // 2, device=device).to(dtype) for _ in range(options.units)]
    targets = [torch.empty_like(source) for source in sources]
    numbers = forecaster.coefficients(steps, CACHED)
    coefficients = torch.tensor(numbers, device=device)
    compiled = torch.compile(lambda state, given, input: forecaster.forecast(state, list(given.unbind(0)), input))

    def update(unit: int) -> None:
        inputs[unit], present[unit] = present[unit], inputs[unit]  # the state has that of the step before
        updated[unit] = forecaster.update(updated[unit], steps, inputs[unit], outputs[unit])

    runs: dict[str, Callable[[int], object]] = {
        "copy": lambda unit: targets[unit].copy_(sources[unit]),
        "forecast": lambda unit: forecaster.forecast(states[unit], numbers, present[unit]),
        "compiled": lambda unit: compiled(states[unit], coefficients, present[unit]),
        "update": update,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # compile, and allocate all memory
        for unit in range(options.units):
            run(unit)
    for _ in range(options.rounds):
        for name, run in runs.items():
            wait(device)
            began = time.perf_counter()
            for unit in range(options.units):
                run(unit)
            wait(device)
            seconds[name].append((time.perf_counter() - began) / options.units)
    return seconds, touched * features().numel() * features().element_size()


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(model: str, name: str, seconds: Mapping[str, list[float]], touched: int) -> dict[str, object]:
    """Return a row of the table: the copy in milliseconds, the others as multiples of the same round's copy."""
    copy = seconds["copy"]
    shares = {
        key: [one / base for one, base in zip(values, copy, strict=True)]
        for key, values in seconds.items()
        if key != "copy"
    }
    ratios = {key: (min(values), statistics.median(values), max(values)) for key, values in shares.items()}
    rate = touched / statistics.median(copy) / 1e9
    return {"model": model, "forecaster": name, "mb": touched / 1e6, "copy_ms": 1e3 * statistics.median(copy),
            "gb_per_s": rate, **{f"{key}_of_copy": values for key, values in ratios.items()}}  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    rows = []
    print("| module of | forecaster | MB | copy, ms | GB/s | forecast | compiled | update |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for model, shape in SHAPES.items():
        for name, forecaster in FORECASTERS.items():
            torch.compiler.reset()
            found = row(model, name, *measure(forecaster, shape, options))
            rows.append(found)
            spans = [found[f"{key}_of_copy"] for key in ("forecast", "compiled", "update")]
            shown = [f"{middle:.2f} ({least:.2f} to {most:.2f})" for least, middle, most in spans]  # type: ignore[misc]
            numbers = f"{found['mb']:.0f} | {found['copy_ms']:.2f} | {found['gb_per_s']:.0f}"
            print(f"| {model} | {name} | {numbers} | {' | '.join(shown)} |", flush=True)
    if options.out:
        machine = {"torch": torch.__version__, "processor": platform.processor(), "threads": torch.get_num_threads()}
        files.write_json(options.out, {"about": machine | about(options), "rows": rows})


if __name__ == "__main__":
    main()
