"""The paper's plots of recorded numbers. Each function returns a figure.

The colours are Okabe and Ito's, which colour-blind readers tell apart. Lines also differ in dashes and marks, for black
and white. The background is white.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from relcache.bench.figures.text import drawable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")  # 7, 6 and 8 together repeat after 168 lines
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "svg.fonttype": "none",
    "svg.hashsalt": "relcache",
}  # fmt: skip


class Line(NamedTuple):
    """One line of a plot: its name, its points, and whether it was measured at each of them."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    measured: bool = True


class Run(NamedTuple):
    """A point of a race: the time as a share of full compute's, and the mean quality with its interval."""

    share: float
    quality: float
    least: float
    most: float


def render(figure: Figure) -> dict[str, bytes]:
    """Render `figure` as file contents by extension, and close it."""
    contents = {}
    for extension, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=extension, dpi=160, metadata=metadata)
        contents[extension] = buffer.getvalue()
    pyplot.close(figure)
    return contents


def lines(panels: Mapping[str, Sequence[Line]], x: str, y: str, *, marks: bool = False, log: bool = False) -> Figure:
    """Draw a panel for each title of `panels`, side by side, with one legend for all.

    Args:
        panels: lines by the panel's title.
        x, y: names of the axes.
        marks: whether to mark the points that were measured.
        log: whether the vertical axis is logarithmic.
    """
    with pyplot.rc_context(STYLE):
        figure, axes = _axes(len(panels))
        names = dict.fromkeys(line.name for drawn in panels.values() for line in drawn)
        styles = dict(zip(names, zip(cycle(COLOURS), cycle(DASHES), cycle(MARKS), strict=False), strict=False))
        for index, (axis, (title, drawn)) in enumerate(zip(axes, panels.items(), strict=True)):
            for line in drawn:
                colour, dashes, marker = styles[line.name]
                mark = {"marker": marker, "markersize": 4} if marks and line.measured else {}
                axis.plot(line.x, line.y, label=line.name, color=colour, linestyle=dashes, **mark)
            axis.set_title(title, parse_math=False)
            axis.set(xlabel=x, ylabel=textwrap.fill(y, 24) if index == 0 else "")
            if log:
                axis.set_yscale("log")
        _legend(figure, axes)
    return figure


def changes(inputs: Sequence[Line], outputs: Sequence[Line]) -> Figure:
    """Draw the step-to-step changes of the outputs and inputs of some modules (the paper's figures 1a and 1b)."""
    normalised = {
        title: [Line(line.name, line.x, _min_max(line.y)) for line in drawn]
        for title, drawn in (("(a) outputs", outputs), ("(b) inputs", inputs))
    }
    return lines(normalised, "step", "normalised L2 change")


def two_errors(panels: Mapping[str, tuple[Line, Line]]) -> Figure:
    """Draw the errors of the predicted input and output of some modules over the steps, with their correlation (2b)."""
    titled = {
        f"{_folded(title)}\ncorrelation {correlation(left.y, right.y):.2f}": [left, right]
        for title, (left, right) in panels.items()
    }
    return lines(titled, "step", "relative L1 error", log=True)


def traces(drawn: Mapping[str, tuple[Sequence[float | None], Sequence[int], float]], about: str = "") -> Figure:
    """Draw each run's error of the predicted input by step, its sum since the last full step, and the full steps.

    `drawn` maps a title to the signal by step, the full steps, and the threshold. `about` is the whole figure's title.
    """
    with pyplot.rc_context(STYLE):
        figure, axes = _axes(len(drawn), most=3)
        for index, (axis, (title, (signal, full_steps, threshold))) in enumerate(zip(axes, drawn.items(), strict=True)):
            known = [np.nan if error is None else error for error in signal]
            spent, sums = 0.0, []
            for step, error in enumerate(known):
                spent += 0.0 if np.isnan(error) else error
                sums.append(spent)
                spent = 0.0 if step in set(full_steps) else spent
            steps = np.arange(len(known))
            axis.plot(steps, sums, color=COLOURS[0], drawstyle="steps-mid", label="sum since the last full step")
            axis.plot(steps, known, color=COLOURS[1], linestyle="--", label="error of the step")
            axis.axhline(threshold, color=COLOURS[6], linestyle=":", linewidth=1, label="threshold")
            axis.plot(full_steps, np.zeros(len(full_steps)), "|", color=COLOURS[2], markersize=9, label="full steps")
            axis.set(title=title, xlabel="step", ylabel="relative L1 error of the first input" if index == 0 else "")
        if about:
            figure.suptitle(drawable(about, "error signal"), fontsize=10, parse_math=False)
        _legend(figure, axes)
    return figure


def race(
    panels: Mapping[str, Mapping[str, Sequence[Run]]], own: tuple[str, Sequence[Run]], title: str, quality: str
) -> Figure:
    """Draw quality over time, a panel for each group of contestants and a curve with a band for each of them.

    `own` is drawn in black in every panel.
    """
    with pyplot.rc_context(STYLE):
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure, grid = pyplot.subplots(
            rows, columns, figsize=(6 * columns, 5.6 * rows + 0.4), squeeze=False, sharex=True, sharey=True,
            layout="constrained",
        )  # fmt: skip
        flat = list(grid.flat)
        for axis in flat[len(panels) :]:
            axis.set_axis_off()
        for index, (axis, (name, curves)) in enumerate(zip(flat, panels.items(), strict=False)):
            styles = zip(cycle(COLOURS[:-1]), cycle(MARKS), cycle(DASHES), strict=False)
            for (label, runs), (colour, mark, dashes) in zip(curves.items(), styles, strict=False):
                _curve(axis, label, runs, color=colour, marker=mark, linestyle=dashes, linewidth=1.1)
            _curve(axis, own[0], own[1], color=COLOURS[-1], marker="o", linewidth=2)
            axis.set_title(name)
            axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("measured time of denoising, full compute is 100 %")
            axis.set_ylabel("" if index % columns else quality)
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, handlelength=3)
        figure.suptitle(textwrap.fill(drawable(title, "quality over time"), 110), fontsize=10, parse_math=False)
    return figure


def _curve(axis: Any, label: str, runs: Sequence[Run], **style: Any) -> None:
    ordered = sorted(runs)
    x = [run.share for run in ordered]
    axis.plot(x, [run.quality for run in ordered], label=drawable(label, "contestant"), markersize=4, **style)
    axis.fill_between(
        x, [run.least for run in ordered], [run.most for run in ordered], color=style["color"], alpha=0.1, linewidth=0
    )


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Pearson's correlation of two series of one length; NaN for fewer than three points."""
    return float(np.corrcoef(left, right)[0, 1]) if len(left) > 2 else float("nan")


def _axes(number: int, most: int = 4) -> tuple[Figure, list[Any]]:
    columns = min(number, most)
    rows = -(-number // columns)
    width = 5.2 if columns == 1 else 3.3 * columns + 0.4
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(width, 2.7 * rows + 0.7), squeeze=False, layout="constrained"
    )
    flat = list(grid.flat)
    for axis in flat[number:]:
        axis.set_axis_off()
    return figure, flat[:number]


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    """Draw one legend below all panels, with each name once."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    room = figure.get_figwidth() / 0.075  # of the figure, in characters
    longest = max(map(len, handles), default=0) + 9  # with the sample of its line
    columns = max(1, min(4, len(handles), int(room / longest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=3)


def _folded(name: str, most: int = 32) -> str:
    """Return a module's name in lines of `most` characters, broken at dots and plus signs."""
    lines = [""]
    for part in re.findall(r"[^.+]+[.+]?", name):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _min_max(values: Sequence[float]) -> list[float]:
    least, most = min(values), max(values)
    return [(value - least) / (most - least) if most > least else 0.0 for value in values]
