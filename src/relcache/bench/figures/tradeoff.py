"""Quality over measured time: a curve for each method, dashed and hollow for those of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from relcache.bench.figures.plots import COLOURS, MARKS, STYLE
from relcache.bench.figures.text import drawable


class Measured(NamedTuple):
    """A point: median, least and greatest time as shares of full compute's, and the quality in dB."""

    time: float
    least: float
    most: float
    quality: float


def tradeoff(ours: Mapping[str, Sequence[Measured]], peers: Mapping[str, Sequence[Measured]], title: str) -> Figure:
    """Draw quality in dB over time, with the spread of the times; each curve joins its points in the order of time."""
    with pyplot.rc_context(STYLE):
        figure, axis = pyplot.subplots(figsize=(7.6, 5.2), layout="constrained")
        styles = zip(cycle(COLOURS), cycle(MARKS), strict=False)
        for curves, is_peer in ((ours, False), (peers, True)):
            for name, points in curves.items():
                colour, mark = next(styles)
                ordered = sorted(points)
                x, y = [point.time for point in ordered], [point.quality for point in ordered]
                below = [max(0.0, point.time - point.least) for point in ordered]
                above = [max(0.0, point.most - point.time) for point in ordered]
                axis.errorbar(x, y, xerr=[below, above], color=colour, linestyle="none", elinewidth=0.8, capsize=2)
                axis.plot(
                    x, y, label=name, color=colour, marker=mark, markersize=6, linewidth=1.1 if is_peer else 1.6,
                    linestyle="--" if is_peer else "-", markerfacecolor="white" if is_peer else colour,
                )  # fmt: skip
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_title(drawable(title, "quality over time"), parse_math=False)
        axis.set(xlabel="measured time of denoising, full compute is 100 %", ylabel="PSNR against full compute, dB")
        figure.legend(loc="outside lower center", ncols=2, handlelength=3.5, fontsize=8)
    return figure
