"""Draw the figures and sheets of a folder of results from its files alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from relcache.bench import files
from relcache.bench.comparison import analysis
from relcache.bench.comparison.analysis import Analysis
from relcache.bench.figures import plots
from relcache.bench.figures.plots import Line
from relcache.bench.figures.sheet import SheetRow
from relcache.bench.figures.text import drawable
from relcache.bench.rivals.registry import is_solver
from relcache.bench.sampling import gallery
from relcache.bench.saved import (
    RACE,
    RACE_FORM,
    SETTINGS,
    TABLE,
    about_of,
    captions_of,
    read_part,
    read_results,
)
from relcache.bench.tables import flops_unit

MOST_SAMPLES, MOST_ROWS = 16, 20  # on a sheet
LARGEST = 256  # pixels of a picture's longer side
AXES = {
    "psnr": "PSNR to full compute, dB", "ssim": "SSIM to full compute", "lpips": "LPIPS to full compute",
    "accuracy": "share of pictures of the right class", "right": "share of samples with all of the prompt right",
    "frechet": "Fréchet distance to full compute", "kind": "share with the right kind",
    "colour": "share with the right colour", "size": "share with the right size",
    "place": "share with the right place", "motion": "share with the right motion",
}  # fmt: skip
"""Names of the axis of a column, with its unit."""
INDEXES = (SETTINGS, TABLE, RACE, analysis.INDEX)  # each folder of results has one of them


def illustrate(folder: Path, modules: Sequence[str] = ()) -> list[Path]:
    """Draw the figures of `folder` and of each folder in it that holds results. Return the files: PNG, SVG and GIF.

    `folder` is the --out of `relcache bench`, `demo` or `analyze`, or a folder of results in it. `modules` are the
    modules of an analysis to show; by default three, spread over the model.

    Raises:
        ValueError: no results, damaged ones, or an unknown module.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the folder" if folder.exists() else f"there is no folder {folder}")
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [path for path in (folder, *below) if any((path / name).exists() for name in INDEXES)]
    if not found:
        raise ValueError(
            f"{folder} holds no results: relcache bench, demo and analyze make them, in a folder for each benchmark"
        )
    if modules and not any((path / analysis.INDEX).exists() for path in found):
        raise ValueError(f"--module is for an analysis, and {folder} holds none: relcache analyze makes one")
    written = [path for results in found for path in _illustrate_one(results, modules)]
    if not written:
        raise ValueError(f"{folder} holds only times, as for random weights: there is nothing to draw")
    return written


def _illustrate_one(folder: Path, modules: Sequence[str]) -> list[Path]:
    """Draw the figures of one folder; there are none for times of random weights."""
    written: list[Path] = []
    if (folder / SETTINGS).exists():
        written += draw_benchmark(folder)
    if (folder / RACE).exists():
        written += draw_race(folder)
    if (folder / analysis.INDEX).exists():
        written += _draw_analysis(folder, modules)
    return written


def _write(folder: Path, name: str, figure: Figure) -> list[Path]:
    written = []
    for extension, content in plots.render(figure).items():
        written.append(folder / "figures" / f"{name}.{extension}")
        files.write_whole(written[-1], content)
    return written


# A benchmark


def draw_benchmark(folder: Path) -> list[Path]:
    """Draw the sheets of a benchmark's folder, its quality over FLOPs, and its traces; of a race only the sheets."""
    settings, rows = read_results(folder)
    cells = [
        {**cell, **row, "folder": folder / settings["runs"] / cell["name"]}
        for cell, row in zip(settings["cells"], rows, strict=True)
    ]
    written = _sheets(folder, settings, cells)
    if (folder / RACE).exists():
        return written
    for column, heading in settings["columns"].items():
        drawn, unit = _quality(cells, column)
        if drawn:
            values = [value for line in drawn for value in line.y]
            wide = min(values) > 0 and max(values) > 20 * min(values)
            title = drawable(about_of(settings), "results")
            axis = AXES.get(column, heading)
            figure = plots.lines({title: drawn}, f"{unit} per sample", axis, marks=True, log=wide)
            written += _write(folder, f"{column}-flops", figure)
    if traces := _traces(cells):
        written += _write(folder, "traces", plots.traces(traces, about_of(settings)))
    return written


def first_images(folder: Path, settings: Mapping[str, Any], most: int = MOST_SAMPLES) -> np.ndarray:
    """Return the first `most` samples of a cell, uint8 (n, …), no side above `LARGEST` pixels."""
    return gallery.read_samples(folder, 0, min(most, len(settings["conditions"])), LARGEST)


def _sheets(folder: Path, settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write a sheet for each number of full steps, with its methods in rows below full compute.

    Of more than `MOST_ROWS` methods it shows those nearest to full compute.
    """
    captions = captions_of(settings)[:MOST_SAMPLES]
    steps = settings["setup"]["steps"]

    def row(cell: Mapping[str, Any]) -> SheetRow:
        quality = f"{cell['psnr']:.1f} dB, " if cell.get("psnr") is not None else ""
        caption = "full compute" if cell is cells[0] else f"{cell['method']}\n{quality}{cell['nfc']:.4g} full"
        return SheetRow(caption, first_images(cell["folder"], settings) / np.float32(255))

    written: list[Path] = []
    reference = row(cells[0])
    shared = [cell for cell in cells[1:] if not is_solver(cell["method"])] or cells[1:]  # solvers have more numbers
    for target in dict.fromkeys(cell["nfc_target"] for cell in shared):
        here = [cell for cell in cells[1:] if cell["nfc_target"] == target]
        if len(here) > MOST_ROWS:
            here = sorted(here, key=lambda cell: -(cell.get("psnr") or 0.0))[:MOST_ROWS]
        rows = [row(cell) for cell in here]
        title = "methods as given" if target is None else f"{target} of {steps} steps in full"
        title = f"{title}: {about_of(settings)}"
        suffix = "" if target is None else f"-nfc{target}"
        written += gallery.write_sheets(folder, [reference, *rows], title, captions, suffix)
    return written


def _quality(cells: Sequence[Mapping[str, Any]], column: str) -> tuple[list[Line], str]:
    """Return each method's line, a table column over FLOPs, and the unit. Full compute is a horizontal line."""
    full, *others = [cell for cell in cells if cell["tflops"] is not None] or [{}]
    unit, scale = flops_unit([cell["tflops"] for cell in others])
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in others:
        if cell.get(column) is not None:
            points.setdefault(cell["method"], []).append((cell["tflops"] * scale, cell[column]))
    drawn = [
        Line(name, [cost for cost, _ in sorted(known)], [value for _, value in sorted(known)])
        for name, known in points.items()
    ]
    if drawn and full.get(column) is not None:
        costs = [cost for line in drawn for cost in line.x]
        drawn.append(Line("full compute", [min(costs), max(costs)], [full[column]] * 2, measured=False))
    return drawn, unit


def _traces(cells: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float | None], list[int], float]]:
    """Return the signal, full steps and threshold of the first batch of each method with a threshold, by title."""
    traced = {}
    for cell in cells:
        if cell.get("threshold") is not None:
            batches = [path for path in cell["folder"].glob("*.npz") if path.stem.isdigit()]
            if not batches:
                gone = f"the samples of {cell['folder']} are gone"
                raise ValueError(f"{gone}: the command that made them makes them again")
            _, report = read_part(min(batches))
            if not report["signal"]:  # another library's
                continue
            title = f"{cell['method']}, {cell['nfc']:.4g} full"
            traced[title] = report["signal"], report["full_steps"], cell["threshold"]
    return traced


# A race

GROUPS = {
    "solver": "No cache: fewer steps", "diffusers": "Caches of diffusers", "cache-dit": "Caches of cache-dit",
    "equations": "Methods of the literature, by their equations", "relcache": "Methods in relcache",
}  # fmt: skip


def draw_race(folder: Path) -> list[Path]:
    """Draw the quality of every contestant over measured time, from race.json."""
    race = files.read_json(folder / RACE, RACE_FORM)
    written: list[Path] = []
    for quality, heading in (("psnr", "PSNR to full compute, dB"), ("exact", "PSNR to the exact solution, dB")):
        curves: dict[str, dict[str, list[plots.Run]]] = {}
        for run in race["runs"][1:]:
            if run.get(quality) is not None and run["share"] is not None:
                group = curves.setdefault(run["group"], {})
                group.setdefault(run["title"], []).append(plots.Run(run["share"], *run[quality]))
        own = curves.get("relcache", {}).pop(race["default"], [])
        panels = {GROUPS.get(group, group): curves[group] for group in {**GROUPS, **curves} if curves.get(group)}
        if panels:
            figure = plots.race(panels, (race["default"], own), race["about"], heading)
            written += _write(folder, f"race-{quality}", figure)
    return written


# An analysis


def _draw_analysis(folder: Path, modules: Sequence[str]) -> list[Path]:
    known = analysis.load(folder)
    chosen = _choose(known, modules)
    written = []
    for name, draw in FIGURES.items():
        written += _write(folder, name, draw(known, chosen))
    files.write_json(folder / "summary.json", summary(known))
    return [*written, folder / "summary.json"]


def _choose(known: Analysis, modules: Sequence[str]) -> list[int]:
    """Return the indices of the modules to show."""
    names = list(known.modules)
    analysis.check_modules(modules, names)
    if modules:
        return [names.index(name) for name in modules]
    return sorted({round(share * (len(names) - 1)) for share in (1 / 6, 1 / 2, 5 / 6)})


def _mean(values: np.ndarray) -> np.ndarray:
    """Average float32 (branches, modules, rows, steps) over branches and rows: float64 (modules, steps)."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0).astype(np.float64).sum((0, 2))
    with np.errstate(invalid="ignore"):
        return total / counted.sum((0, 2))


def _series(known: Analysis, name: str, module: int) -> tuple[list[int], list[float]]:
    """Return the steps at which a quantity of a module is known, and its means there."""
    (values,) = _mean(known.values[name][:, [module]])
    steps = np.flatnonzero(np.isfinite(values))
    return steps.tolist(), values[steps].tolist()


def _draw_changes(known: Analysis, modules: Sequence[int]) -> Figure:
    inputs, outputs = (
        [Line(known.modules[module], *_series(known, name, module)) for module in modules]
        for name in ("input_change", "output_change")
    )
    return plots.changes(inputs, outputs)


def _draw_errors(known: Analysis, modules: Sequence[int]) -> Figure:
    """Draw the error of each module's forecast, averaged over the steps (1c)."""
    errors = {name: np.nanmean(_mean(known.values[f"error {name}"]), 1).tolist() for name in known.methods}
    drawn = [Line(name, range(len(known.modules)), error) for name, error in errors.items()]
    return plots.lines({"": drawn}, "module", "relative L1 error of the output", marks=True, log=True)


def _draw_relation(known: Analysis, modules: Sequence[int]) -> Figure:
    """Draw s over the steps, with its relative standard deviation (2a)."""
    drawn = []
    for module in modules:
        steps, s = _series(known, "s", module)
        spread = f"{np.std(s) / np.mean(s):.1%}" if len(s) else "its input does not move"
        drawn.append(Line(f"{known.modules[module]}: {spread}", steps, s))
    return plots.lines({"": drawn}, "step", "s: change of output / of input", marks=True)


def _draw_two_errors(known: Analysis, modules: Sequence[int]) -> Figure:
    """Draw the errors of the predicted input and output over the steps (2b)."""
    output = f"error {_reference(known)}"
    return plots.two_errors({
        known.modules[module]: (
            Line("input", *_series(known, "input_error", module)), Line("output", *_series(known, output, module))
        )
        for module in modules
    })  # fmt: skip


FIGURES: dict[str, Callable[[Analysis, Sequence[int]], Figure]] = {
    "changes": _draw_changes,
    "errors": _draw_errors,
    "relation": _draw_relation,
    "input-and-output-errors": _draw_two_errors,
}


def _reference(known: Analysis) -> str:
    """Return the method to compare with the errors of the input: plain extrapolation if present."""
    return next((name for name in known.methods if name.startswith("taylorseer")), known.methods[0])


def summary(known: Analysis) -> dict[str, Any]:
    """Return the figures' numbers by module and over all modules; None for too few steps.

    The relative standard deviation of s in each row is taken over all steps of a run, and averaged over the gaps
    between full steps. The correlation is between the errors of input and output over the steps. A stream with a
    constant input, such as FLUX's text before the first block, has no s; means leave it out.
    """
    s = known.values["s"].astype(np.float64)
    with warnings.catch_warnings():  # about empty means, for a stream without s
        warnings.simplefilter("ignore", RuntimeWarning)
        over_run, within = np.nanstd(s, -1) / np.nanmean(s, -1), _within(s)
    method = _reference(known)
    together = np.array([
        plots.correlation(*(_series(known, name, module)[1] for name in ("input_error", f"error {method}")))
        for module in range(len(known.modules))
    ])  # fmt: skip
    return {
        "about": dict(known.about),
        "s, relative standard deviation over a run": _number(over_run),
        "s, relative standard deviation from one full step to the next": _number(within),
        f"correlation of input error with the output error of {method}": _number(together),
        "relative L1 error of the output": {
            name: float(np.nanmean(known.values[f"error {name}"])) for name in known.methods
        },
        "modules": [
            {"module": name, "over a run": _number(over_run[:, index]),
             "from one full step to the next": _number(within[:, index]), "correlation": _number(together[index])}
            for index, name in enumerate(known.modules)
        ],
    }  # fmt: skip


def _within(s: np.ndarray) -> np.ndarray:
    """Average the relative standard deviation of s (…, steps) between full steps; NaN without such steps."""
    cached = np.isfinite(s).any((0, 1, 2)).tolist()
    spread = []
    for is_cached, group in groupby(range(len(cached)), key=lambda step: cached[step]):
        steps = list(group)
        if is_cached and len(steps) > 1:
            spread.append(s[..., steps].std(-1) / s[..., steps].mean(-1))
    return np.mean(spread, 0) if spread else np.full(s.shape[:-1], np.nan)


def _number(values: np.ndarray) -> float | None:
    """Return the mean of the finite values, None without any."""
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if known.size else None
