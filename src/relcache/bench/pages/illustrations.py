"""Figures and sheets of a folder of results, from what is saved in it alone."""

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
from relcache.bench.figures.sheet import Row
from relcache.bench.figures.tradeoff import Measured, tradeoff
from relcache.bench.form import check_form
from relcache.bench.sampling import gallery
from relcache.bench.saved import POINT_FORM, RACE_FORM, SETTINGS, TABLE, read_part, read_results

SHOWN = 16  # samples on a sheet
LARGEST = 256  # pixels of a picture's longer side on it
INDEXES = (SETTINGS, TABLE, analysis.INDEX)  # one of them is in each folder of results


def illustrate(folder: Path, modules: Sequence[str] = ()) -> list[Path]:
    """Draw what `folder`, of a benchmark or an analysis, or each folder in it has results for.

    Args:
        folder: what `relcache bench`, `relcache demo` or `relcache analyze` wrote, or was given as --out.
        modules: of an analysis, the modules to show, by name; by default three, spread over the model.

    Returns:
        The files: each figure as PNG and as SVG, sheets as PNG, clips as GIF.

    Raises:
        ValueError: there are no results, or they are damaged; or there is no module of such a name.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: give the folder" if folder.exists() else f"there is no folder {folder}")
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [place for place in (folder, *below) if any((place / name).exists() for name in INDEXES)]
    if not found:
        raise ValueError(
            f"{folder} holds no results: relcache bench, demo and analyze make them, in a folder for each benchmark"
        )
    if modules and not any((place / analysis.INDEX).exists() for place in found):
        raise ValueError(f"--module is of an analysis, and {folder} holds none: relcache analyze makes one")
    written = [path for place in found for path in _of(place, modules)]
    if not written:
        raise ValueError(f"{folder} holds times alone, as of random weights: there is nothing to draw")
    return written


def _of(folder: Path, modules: Sequence[str]) -> list[Path]:
    """Draw what one folder has results for; a race without qualities, as of random weights, has no figure."""
    written: list[Path] = []
    if (folder / SETTINGS).exists():
        written += of_benchmark(folder)
    elif (folder / TABLE).exists():
        written += of_tradeoff(folder)
    if (folder / analysis.INDEX).exists():
        written += _of_analysis(folder, modules)
    return written


def _write(folder: Path, name: str, figure: Figure) -> list[Path]:
    written = []
    for extension, content in plots.render(figure).items():
        written.append(folder / "figures" / f"{name}.{extension}")
        files.write_whole(written[-1], content)
    return written


# Of a benchmark


def of_benchmark(folder: Path) -> list[Path]:
    """Draw sheets, quality over FLOPs, and traces of the folder of a benchmark."""
    settings, rows = read_results(folder)
    cells = [{**cell, **row, "folder": folder / settings["runs"] / cell["name"]} for cell, row in
             zip(settings["cells"], rows, strict=True)]  # fmt: skip
    written = _sheets(folder, settings, cells)
    for column, heading in settings["columns"].items():
        drawn, unit = _quality(cells, column)
        if drawn:
            values = [value for line in drawn for value in line.y]
            wide = min(values) > 0 and max(values) > 20 * min(values)
            figure = plots.lines({"": drawn}, f"{unit} per sample", heading, marks=True, log=wide)
            written += _write(folder, f"{column}-flops", figure)
    traced = _traces(cells)
    if traced:
        written += _write(folder, "traces", plots.traces(traced))
    return written


def _first_report(folder: Path) -> dict[str, Any]:
    """The report of a cell's first batch."""
    found = sorted(path for path in folder.glob("*.npz") if path.stem.isdigit())
    if not found:
        raise ValueError(f"the samples of {folder} are gone: the command that made them makes them again")
    return read_part(found[0])[1]


def images_of(folder: Path, settings: Mapping[str, Any], most: int) -> np.ndarray:
    """The first `most` samples of a cell, no side above `LARGEST` pixels, float32 in [0, 1]."""
    count = min(most, len(settings["conditions"]))
    return gallery.read_samples(folder, 0, count, LARGEST) / np.float32(255)


def _sheets(folder: Path, settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[Path]:
    """A sheet for each number of full steps: its methods in rows, below full compute."""
    prompts = [condition for condition in settings["conditions"][:SHOWN] if isinstance(condition, str)]
    steps = settings["setup"]["steps"]
    full, *others = cells
    reference = Row("full compute", images_of(full["folder"], settings, SHOWN))
    written: list[Path] = []
    for target in dict.fromkeys(_target(cell) for cell in others):
        shown = [cell for cell in others if _target(cell) == target]
        rows = [Row(_caption(cell), images_of(cell["folder"], settings, SHOWN)) for cell in shown]
        title = "methods as given" if target is None else f"{target} of {steps} steps in full"
        suffix = "" if target is None else f"-nfc{target}"
        written += gallery.write_sheets(folder, [reference, *rows], title, prompts, suffix)
    return written


def _target(cell: Mapping[str, Any]) -> int | None:
    return cell["nfc_target"]


def _caption(cell: Mapping[str, Any]) -> str:
    quality = f"{cell['psnr']:.1f} dB, " if cell.get("psnr") is not None else ""
    return f"{cell['method']}\n{quality}{cell['nfc']:.4g} full"


def _quality(cells: Sequence[Mapping[str, Any]], column: str) -> tuple[list[Line], str]:
    """A line for each method: a column of the table over FLOPs; and the unit. Full compute is a level."""
    full, *others = [cell for cell in cells if cell["tflops"] is not None] or [{}]
    unit, scale = ("TFLOPs", 1) if max((cell["tflops"] for cell in others), default=0) >= 1 else ("GFLOPs", 1000)
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in others:
        if cell.get(column) is not None:
            points.setdefault(cell["method"], []).append((cell["tflops"] * scale, cell[column]))
    drawn = [Line(name, *zip(*sorted(known), strict=True)) for name, known in points.items()]
    if drawn and full.get(column) is not None:
        places = [place for line in drawn for place in line.x]
        drawn.append(Line("full compute", [min(places), max(places)], [full[column]] * 2))
    return drawn, unit


def _traces(cells: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float | None], list[int], float]]:
    """Of each method with a threshold: the signal and the full steps of its first batch."""
    traced = {}
    for cell in cells:
        if cell.get("threshold") is not None:
            report = _first_report(cell["folder"])
            title = f"{cell['method']}, {cell['nfc']:.4g} full"
            traced[title] = report["signal"], report["full_steps"], cell["threshold"]
    return traced


# Of the speed of a pipeline


def of_tradeoff(folder: Path) -> list[Path]:
    """Draw quality over measured time, of methods and peers, from the table.json of `relcache bench speed`.

    Nothing where it has no qualities, as of random weights.
    """
    path = folder / TABLE
    read = files.read_json(path, RACE_FORM)
    rows = [row for row in read["rows"] if row.get("psnr") is not None and "share" in row]
    curves: tuple[dict[str, list[Measured]], dict[str, list[Measured]]] = ({}, {})
    with files.reading(path):
        check_form(rows, [POINT_FORM])
    for row in rows:
        point = Measured(row["share"], row["share_least"], row["share_most"], row["psnr"])
        curves[row["peer"]].setdefault(row["method"], []).append(point)
    return _write(folder, "psnr-time", tradeoff(*curves, read["about"])) if any(curves) else []


# Of an analysis


def _of_analysis(folder: Path, modules: Sequence[str]) -> list[Path]:
    known = analysis.load(folder)
    chosen = _choose(known, modules)
    written = []
    for name, draw in FIGURES.items():
        written += _write(folder, name, draw(known, chosen))
    files.write_json(folder / "summary.json", summary(known))
    return [*written, folder / "summary.json"]


def _choose(known: Analysis, modules: Sequence[str]) -> list[int]:
    """Places of the modules to show."""
    names = list(known.modules)
    analysis.check_modules(modules, names)
    if modules:
        return [names.index(name) for name in modules]
    return sorted({round(share * (len(names) - 1)) for share in (1 / 6, 1 / 2, 5 / 6)})


def _mean(known: Analysis, name: str, module: int | None = None) -> np.ndarray:
    """A recorded quantity, mean over branches and rows: (steps,) of one module, else (modules, steps)."""
    values = known.values[name] if module is None else known.values[name][:, [module]]
    counted = np.isfinite(values)
    total = np.where(counted, values, 0).astype(np.float64).sum((0, 2))
    with np.errstate(invalid="ignore"):
        mean = total / counted.sum((0, 2))
    return mean if module is None else mean[0]


def _series(known: Analysis, name: str, module: int) -> tuple[list[int], list[float]]:
    """The steps at which a quantity of a module is known, and its means there."""
    values = _mean(known, name, module)
    steps = np.flatnonzero(np.isfinite(values))
    return steps.tolist(), values[steps].tolist()


def _by_step(known: Analysis, name: str, modules: Sequence[int]) -> list[Line]:
    return [Line(known.modules[module], *_series(known, name, module)) for module in modules]


def _draw_changes(known: Analysis, modules: Sequence[int]) -> Figure:
    return plots.changes(_by_step(known, "input_change", modules), _by_step(known, "output_change", modules))


def _draw_errors(known: Analysis, modules: Sequence[int]) -> Figure:
    """Error of each module's forecast, mean over the steps (1c)."""
    places = range(len(known.modules))
    drawn = [Line(name, places, np.nanmean(_mean(known, f"error {name}"), 1).tolist()) for name in known.methods]
    return plots.lines({"": drawn}, "module", "relative L1 error of the output", marks=True, log=True)


def _draw_relation(known: Analysis, modules: Sequence[int]) -> Figure:
    """s over the steps, with its relative standard deviation (2a)."""
    drawn = []
    for module in modules:
        steps, s = _series(known, "s", module)
        spread = f"{np.std(s) / np.mean(s):.1%}" if len(s) else "its input does not move"
        drawn.append(Line(f"{known.modules[module]}: {spread}", steps, s))
    return plots.lines({"": drawn}, "step", "s: change of output / of input", marks=True)


def _draw_two_errors(known: Analysis, modules: Sequence[int]) -> Figure:
    """Errors of the predicted input and output over the steps (2b)."""
    method = _reference(known)
    panels = {}
    for module in modules:
        errors = {"input": "input_error", "output": f"error {method}"}
        left, right = (Line(name, *_series(known, key, module)) for name, key in errors.items())
        panels[known.modules[module]] = (left, right)
    return plots.two_errors(panels)


FIGURES: dict[str, Callable[[Analysis, Sequence[int]], Figure]] = {
    "changes": _draw_changes,
    "errors": _draw_errors,
    "relation": _draw_relation,
    "input-and-output-errors": _draw_two_errors,
}


def _reference(known: Analysis) -> str:
    """The method whose output errors are set against those of the input: plain extrapolation where there is one."""
    return next((name for name in known.methods if name.startswith("taylorseer")), known.methods[0])


def summary(known: Analysis) -> dict[str, Any]:
    """The figures' numbers in brief: by module and over all modules; None where there are too few steps.

    A stream whose input does not move, as FLUX's text before the first block, has no s and is left out of means.

    s varies by its standard deviation over its mean, of each row by itself: over all steps of a run, and over the steps
    from one full step to the next, of which the mean is taken. The correlation is that of the errors of input and
    output over the steps.
    """
    s = known.values["s"].astype(np.float64)
    with warnings.catch_warnings():  # of means of nothing, where a stream has no s
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
            {"module": name, "over a run": _number(over_run[:, place]),
             "from one full step to the next": _number(within[:, place]), "correlation": _number(together[place])}
            for place, name in enumerate(known.modules)
        ],
    }  # fmt: skip


def _within(s: np.ndarray) -> np.ndarray:
    """Mean relative standard deviation of s (…, steps) over the steps between full steps; NaN without such steps."""
    cached = [bool(known) for known in np.isfinite(s).any((0, 1, 2))]
    spread = []
    for is_cached, group in groupby(range(len(cached)), key=lambda step: cached[step]):
        steps = list(group)
        if is_cached and len(steps) > 1:
            spread.append(s[..., steps].std(-1) / s[..., steps].mean(-1))
    return np.mean(spread, 0) if spread else np.full(s.shape[:-1], np.nan)


def _number(values: np.ndarray) -> float | None:
    """The mean of those that are known, None where none is."""
    known = values[np.isfinite(values)]
    return float(np.mean(known)) if known.size else None
