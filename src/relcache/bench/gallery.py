"""Samples as files: a picture or a clip each, and sheets that show methods side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from relcache.bench import files
from relcache.figures.clip import clip_gif, draw_clips
from relcache.figures.sheet import Row, draw_sheet

STRIP = 12  # frames of a strip at most, spread over the clip


def write_each(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Write each picture (n, channels, height, width) as PNG, or each clip (n, frames, …) as GIF, under its name."""
    for image, name in zip(images, names, strict=True):
        if image.ndim == 4:
            files.write_whole(folder / f"{name}.gif", clip_gif(image))
            continue
        pixels = (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
        files.write_whole(folder / f"{name}.png", buffer.getvalue())


def write_sheets(
    folder: Path, rows: list[Row], title: str, columns: Sequence[str] = (), suffix: str = "", strips: int = 3
) -> list[Path]:
    """Write a sheet of `rows`; of clips their middle frames, an animation, and strips of frames of the first few.

    Returns:
        The files, with `suffix` before their extensions: sheet.png, and of clips clips.gif and frames-0.png, ….
    """
    sheet = folder / f"sheet{suffix}.png"
    if rows[0].images.ndim == 4:
        files.write_whole(sheet, draw_sheet(rows, title, columns))
        return [sheet]
    middle = [Row(row.caption, row.images[:, row.images.shape[1] // 2]) for row in rows]
    files.write_whole(sheet, draw_sheet(middle, f"{title}; middle frames", columns, most=8))
    clips = folder / f"clips{suffix}.gif"
    files.write_whole(clips, draw_clips(rows, title, columns))
    written = [sheet, clips]
    for index in range(min(strips, len(rows[0].images))):
        count = rows[0].images.shape[1]
        frames = np.linspace(0, count - 1, min(count, STRIP)).round().astype(int)
        strip = [Row(row.caption, row.images[index][frames]) for row in rows]
        name = f"{columns[index]}; {title}" if columns else title
        written.append(folder / f"frames{suffix}-{index}.png")
        files.write_whole(written[-1], draw_sheet(strip, name))
    return written


def slug(text: str, longest: int = 60) -> str:
    """`text` as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].rstrip("-") or "empty"
