"""A sheet of pictures: a row per method, the same seeds in columns."""

from __future__ import annotations

import io
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot


class Row(NamedTuple):
    """One row: its caption, and pictures (n, channels, height, width) in [0, 1]."""

    caption: str
    images: np.ndarray


def draw_sheet(rows: list[Row], title: str, most: int = 16) -> bytes:
    """A PNG file of the first `most` pictures of each row.

    Raises:
        ValueError: rows of different numbers or sizes of pictures.
    """
    shapes = {row.images.shape for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"the rows of a sheet hold the same number and size of pictures, got {sorted(shapes)}")
    count = min(most, len(rows[0].images))
    side = 0.62  # inches per picture
    figure, axes = pyplot.subplots(
        len(rows), count, figsize=(1.9 + side * count, 0.45 + side * len(rows)), squeeze=False, dpi=160
    )
    figure.subplots_adjust(
        left=1.9 / (1.9 + side * count), right=0.995, bottom=0.005, top=1 - 0.4 / (0.45 + side * len(rows)),
        wspace=0.04, hspace=0.04,
    )  # fmt: skip
    for row, line in zip(rows, axes, strict=True):
        for image, axis in zip(row.images, line, strict=False):
            grey = image.shape[0] == 1
            axis.imshow(
                image[0] if grey else image.transpose(1, 2, 0),
                cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest",
            )  # fmt: skip
            axis.set_axis_off()
        line[0].text(
            -0.12, 0.5, row.caption, transform=line[0].transAxes, ha="right", va="center", fontsize=8, linespacing=1.3
        )
    figure.suptitle(title, fontsize=10, x=0.5, y=0.995, va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    pyplot.close(figure)
    return buffer.getvalue()
