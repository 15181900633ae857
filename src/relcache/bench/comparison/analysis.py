"""Record how features change in a run with full compute, how large forecast errors are, and how constant s is.

One pass suffices: at each step a probe compares the forecasts with the computed output, and keeps numbers only. It
needs memory for the features that the forecasters keep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from relcache.api import enable
from relcache.bench import files
from relcache.bench.comparison.entries import Entry
from relcache.bench.comparison.prepare import identity
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import with_any_budget
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.bench.saved import INDEX_FORM
from relcache.checks import unknown
from relcache.forecasters.base import Forecast, Forecaster
from relcache.forecasters.expansion import Expansion, norm_l2, sum_absolute, weighted_sum
from relcache.method import Method
from relcache.methods import method_from_config
from relcache.models.coarse import Granularity
from relcache.schedules import Always, Interval

RECORDED = ("input_change", "output_change", "s", "input_error")  # for each module, beside each method's errors
INDEX, PARTS = "analysis.json", "parts"  # the names recorded, and the folder of each batch's numbers


class Trail(NamedTuple):
    """The state of a probe for one stream: the last step's features, the forecasters' histories, and numbers by step.

    `inputs` are the probe's own history. `steps` are the full steps of the forecasters, newest first, and `anchor` is
    the output of the latest. `rows` has tensors (rows,) by name for each step.
    """

    input: Tensor
    output: Tensor
    inputs: Tensor
    anchor: Tensor
    states: tuple[Any, ...]
    steps: tuple[int, ...]
    rows: dict[int, dict[str, Tensor]]


@dataclass(frozen=True)
class ForecastProbe(Forecaster):
    """Record the errors that each of `forecasters` would have made, and forecast nothing.

    At each step it records the L2 norms of each sample's changes of input and output since the step before. Between
    the full steps of `schedule` it adds the relative L1 errors of each forecast and of an input predicted to `order`.
    It also adds s: the change of the output since the last full step, divided by the change of the input.
    """

    forecasters: tuple[tuple[str, Forecaster], ...]
    schedule: Interval
    order: int = 1

    @property
    def expansion(self) -> Expansion:
        return Expansion(self.order)

    def update(self, state: Trail | None, steps: Sequence[int], input: Tensor, output: Tensor) -> Trail:
        step = steps[0]
        rows = {} if state is None else state.rows
        row: dict[str, Tensor] = {}
        if state is not None:
            row["input_change"] = norm_l2(input - state.input, "sample")
            row["output_change"] = norm_l2(output - state.output, "sample")
        if state is not None and not self.schedule.wants_full(None, step, None):
            row |= self._errors(state, step, input, output)
            return state._replace(input=input, output=output, rows={**rows, step: row})
        states = state.states if state else (None,) * len(self.forecasters)
        full = (step, *(state.steps if state else ()))
        states = tuple(
            forecaster.update(own, full, input, output)
            for (_, forecaster), own in zip(self.forecasters, states, strict=True)
        )
        inputs = self.expansion.extend(state.inputs if state else None, full, input)
        return Trail(input, output, inputs, output, states, full, {**rows, step: row})

    def _errors(self, state: Trail, step: int, input: Tensor, output: Tensor) -> dict[str, Tensor]:
        predicted = weighted_sum(state.inputs, self.expansion.coefficients(state.steps, step))
        moved = norm_l2(input - state.inputs[:, 0], "sample")
        row = {
            "s": norm_l2(output - state.anchor, "sample") / torch.where(moved == 0, torch.nan, moved),
            "input_error": sum_absolute(input - predicted) / sum_absolute(input),
        }
        for (name, forecaster), own in zip(self.forecasters, state.states, strict=True):
            forecast = forecaster.forecast(own, forecaster.coefficients(state.steps, step), input).output
            row[f"error {name}"] = sum_absolute(output - forecast) / sum_absolute(output)
        return row

    def forecast(self, state: Any, coefficients: Sequence[float | Tensor], input: Tensor) -> Forecast:
        raise TypeError("a probe forecasts nothing: give it the schedule Always")


@dataclass(frozen=True)
class Analysis:
    """The record of `analyze`.

    Attributes:
        about: model, samples, steps, interval and the like.
        methods: names of the forecasters.
        modules: names of the streams: a module, and for joint attention also its output.
        branches: names of the guidance branches.
        values: by name, float32 (branches, modules, rows of the transformer's batch, steps), NaN without a record.
    """

    about: Mapping[str, Any]
    methods: Sequence[str]
    modules: Sequence[str]
    branches: Sequence[str]
    values: Mapping[str, np.ndarray]


def analyze(
    model: str,
    entries: Sequence[Entry],
    conditions: Sequence[int | str],
    seeds: Sequence[int],
    out: Path,
    *,
    interval: int = 4,
    steps: int = 50,
    batch: int = 4,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "float32",
    offload: str = "none",
    granularity: Granularity = "module",
    modules: Sequence[str] = (),
    advance: Callable[[int], None] = lambda count: None,
) -> Analysis:
    """Record a run of `model` with full compute into `out`; keep batches that are recorded already.

    All forecasters of `entries` forecast from the same full steps: 0, 1, 1 + interval, ….

    Raises:
        ValueError: no method, too few steps, a model that cannot be loaded, or the results of another analysis in
            `out`. After the first batch also a name in `modules` that the model does not have.
    """
    if not entries:
        raise ValueError("an analysis needs at least one method that forecasts, such as taylorseer-1")
    if steps < 3:
        raise ValueError(f"an analysis needs at least 3 steps, as the first two are full; got {steps}")
    forecasters = tuple((entry.name, method_from_config(with_any_budget(entry.config)).forecaster) for entry in entries)
    probe = Method(ForecastProbe(forecasters, Interval(interval)), Always(), name="probe", granularity=granularity)
    about = {
        "model": model, "identity": identity(model), "samples": len(seeds), "first seed": seeds[0], "steps": steps,
        "interval": interval, "batch": batch, "dtype": dtype, "granularity": granularity,
        "methods": [entry.name for entry in entries],
        "configs": [dict(entry.config) for entry in entries],
        "options": dict(options or {}), "conditions": list(conditions),
    }  # fmt: skip
    index = out / INDEX
    files.check_folder(out, [INDEX])
    if index.exists() and files.read_json(index, INDEX_FORM)["about"] != about:
        raise ValueError(f"{out} holds another analysis: give another --out, or delete it")
    pipeline = None
    for start in range(0, len(seeds), batch):
        part = out / PARTS / f"{start:06d}.npz"
        if not part.exists():
            if pipeline is None:
                pipeline = load_pipeline(model, device, dtype, offload)
                sampler = Sampler(pipeline, steps, batch, options or {})
            rows = slice(start, start + batch)
            with enable(pipeline, probe) as handle:
                sampler.call(seeds[rows], conditions[rows])
                names, arrays = _table(handle.states(), steps)
            files.write_json(index, {"about": about, **names})
            files.write_arrays(part, arrays)
        if start == 0:
            check_modules(modules, files.read_json(index, INDEX_FORM)["modules"])
        advance(min(batch, len(seeds) - start))
    return load(out)


def check_modules(requested: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError unless all `requested` modules are among the recorded `names`."""
    missing = next((name for name in requested if name not in names), None)
    if missing is not None:
        raise ValueError(unknown("module of this analysis", missing, names))


def load(folder: Path) -> Analysis:
    """Read the analysis in `folder`.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    index = folder / INDEX
    if not index.exists():
        raise ValueError(f"{folder} holds no analysis: relcache analyze makes one")
    found = files.read_json(index, INDEX_FORM)
    with files.reading(index):
        if min(found["about"]["batch"], found["about"]["samples"]) < 1 or not found["about"]["methods"]:
            raise ValueError("it names no samples, no batch or no methods")
    needed = [*RECORDED, *(f"error {name}" for name in found["about"]["methods"])]
    parts = [files.read_arrays(path, needed) for path in sorted((folder / PARTS).glob("*.npz"))]
    samples, batch = found["about"]["samples"], found["about"]["batch"]
    if len(parts) < -(-samples // batch):
        raise ValueError(f"the analysis in {folder} is not finished: the same relcache analyze resumes it")
    with files.reading(folder / PARTS, "delete it, and the same relcache analyze makes it again"):
        values = {name: np.concatenate([part[name] for part in parts], 2) for name in parts[0]}
        shape = len(found["branches"]), len(found["modules"]), found["about"]["steps"]
        wrong = next((name for name, array in values.items() if (*array.shape[:2], array.shape[3]) != shape), None)
        if wrong is not None:
            raise ValueError(f"{wrong} has shape {values[wrong].shape}, but {INDEX} names {shape}")
    return Analysis(found["about"], found["about"]["methods"], found["modules"], found["branches"], values)


def _table(states: Sequence[tuple[str, str, Trail]], steps: int) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """Return the names of branches and modules, and their numbers by name, (branches, modules, rows, steps)."""
    branches = list(dict.fromkeys(branch for branch, _, _ in states))
    modules = list(dict.fromkeys(module for _, module, _ in states))
    shape = len(branches), len(modules), len(states[0][2].output), steps
    arrays: dict[str, np.ndarray] = defaultdict(lambda: np.full(shape, np.nan, np.float32))
    for branch, module, trail in states:
        for step, row in trail.rows.items():
            for name, numbers in row.items():
                arrays[name][branches.index(branch), modules.index(module), :, step] = numbers.float().cpu().numpy()
    return {"branches": branches, "modules": modules}, arrays
