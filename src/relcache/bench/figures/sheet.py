"""Sheets of pictures and clips: a row per method, the same seeds or prompts in columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot

from relcache.bench.figures.text import drawable, folded, labels, style

LINES = 8  # at most, in a column's heading


class SheetRow(NamedTuple):
    """One row: its caption, and pictures (n, channels, height, width) or clips (n, frames, …), float32 in [0, 1]."""

    caption: str
    images: np.ndarray


def draw_sheet(rows: list[SheetRow], title: str, columns: Sequence[str] = (), most: int = 16, dpi: int = 160) -> bytes:
    """Draw a PNG file of the first `most` pictures of each row, below the texts `columns`.

    A plain label, such as "prompt 3", replaces a text that no installed font can draw.

    Raises:
        ValueError: rows with different numbers or sizes of pictures.
    """
    shapes = {row.images.shape for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"the rows of a sheet need the same number and size of pictures, got {sorted(shapes)}")
    count = min(most, len(rows[0].images))
    side = min(1.6, max(0.62, 11 / count)) if columns or count < 12 else 0.62  # inches per picture
    captions = [folded(column, 16, LINES) for column in labels(columns[:count], "prompt")]
    widest = max(len(line) for row in rows for line in row.caption.splitlines() or [""])
    left, top = 0.25 + 0.075 * widest, 0.4 + 0.11 * max((caption.count("\n") + 1 for caption in captions), default=0)
    width, height = left + side * count, 0.05 + top + side * len(rows)
    figure, axes = pyplot.subplots(len(rows), count, figsize=(width, height), squeeze=False, dpi=dpi)
    figure.subplots_adjust(left=left / width, right=0.995, bottom=0.005, top=1 - top / height, wspace=0.04, hspace=0.04)
    for caption, axis in zip(captions, axes[0], strict=False):
        axis.set_title(caption, fontsize=6, pad=2, **style(caption))
    for row, line in zip(rows, axes, strict=True):
        for image, axis in zip(row.images, line, strict=False):
            grey = image.shape[0] == 1
            axis.imshow(
                image[0] if grey else image.transpose(1, 2, 0),
                cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest",
            )  # fmt: skip
            axis.set_axis_off()
        line[0].text(
            -0.12, 0.5, row.caption, transform=line[0].transAxes, ha="right", va="center", fontsize=8, linespacing=1.3,
            **style(row.caption),
        )  # fmt: skip
    heading = folded(drawable(title, "samples"), max(20, int(11 * width)), 1)
    figure.suptitle(heading, fontsize=10, x=0.5, y=0.995, va="top", **style(heading))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    pyplot.close(figure)
    return buffer.getvalue()


def draw_clips(
    rows: list[SheetRow], title: str, columns: Sequence[str] = (), most: int = 6, rate: float = 6.0
) -> bytes:
    """Draw an endless GIF file of the first `most` clips of each row at `rate` frames per second."""
    frames = []
    for frame in range(rows[0].images.shape[1]):
        still = [SheetRow(row.caption, row.images[:, frame]) for row in rows]
        with Image.open(io.BytesIO(draw_sheet(still, title, columns, most, dpi=80))) as sheet:
            frames.append(sheet.convert("RGB").quantize(128, dither=Image.Dither.NONE))
    return _gif(frames, rate)


def clip_gif(clip: np.ndarray, rate: float = 6.0, least: int = 256) -> bytes:
    """Return a GIF file of one uint8 clip (frames, channels, height, width), enlarged to at least `least` pixels."""
    times = max(1, least // clip.shape[-1])
    frames = []
    for frame in clip:
        picture = as_image(frame).convert("RGB")
        size = (picture.width * times, picture.height * times)
        frames.append(picture.resize(size, Image.Resampling.NEAREST).quantize(256, dither=Image.Dither.NONE))
    return _gif(frames, rate)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Quantise pixels in [0, 1] to uint8."""
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)


def as_image(picture: np.ndarray) -> Image.Image:
    """Return a uint8 picture (channels, height, width) as Pillow's image, grey for one channel."""
    pixels = picture.transpose(1, 2, 0)
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def _gif(frames: list[Image.Image], rate: float) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, disposal=1
    )
    return buffer.getvalue()
