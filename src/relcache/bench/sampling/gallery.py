"""Samples as files: a picture or a clip each, and sheets that show methods side by side.

`write_each` writes for people: clips become animations, with fewer colours. `write_samples` writes for measuring: a PNG
file for each picture or frame. `read_samples` reads exactly the same numbers from them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from relcache.bench import files
from relcache.bench.figures.sheet import SheetRow, as_image, clip_gif, draw_clips, draw_sheet, to_8_bits
from relcache.bench.figures.text import labels

STRIP = 12  # frames of a strip at most, spread over the clip


def write_each(folder: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Write each picture (n, channels, height, width) as PNG, or each clip (n, frames, …) as GIF, under its name.

    `images` are float32 in [0, 1].
    """
    for image, name in zip(to_8_bits(images), names, strict=True):
        if image.ndim == 4:
            files.write_whole(folder / f"{name}.gif", clip_gif(image))
        else:
            _write_png(folder / f"{name}.png", image)


def write_samples(folder: Path, first: int, images: np.ndarray) -> None:
    """Write uint8 pictures (n, channels, height, width) or clips (n, frames, …) under the numbers from `first` on."""
    for number, image in enumerate(images, first):
        for frame, picture in enumerate(image) if image.ndim == 4 else [(None, image)]:
            _write_png(_path(folder, number, frame), picture)


def read_samples(folder: Path, first: int, count: int, largest: int | None = None) -> np.ndarray:
    """Read uint8 samples that `write_samples` wrote under the numbers from `first` on, no side above `largest` pixels.

    Raises:
        ValueError: a file is missing or damaged; the message says what to delete.
    """
    if not folder.is_dir():
        raise ValueError(f"the samples in {folder} are gone: the command that made them makes them again")
    samples: list[np.ndarray] = []
    for number in range(first, first + count):
        clip = folder / f"{number:06d}"
        if clip.is_dir():
            frames = range(len(list(clip.glob("*.png"))))
            samples.append(np.stack([_read_png(folder, number, frame, largest) for frame in frames]))
        else:
            samples.append(_read_png(folder, number, None, largest))
        if samples[-1].shape != samples[0].shape:
            raise ValueError(
                f"sample {number} in {folder} has another size than sample {first}: {samples[-1].shape} and "
                f"{samples[0].shape}; delete {folder}, and the same command makes it again"
            )
    return np.stack(samples)


def _path(folder: Path, number: int, frame: int | None) -> Path:
    return folder / (f"{number:06d}.png" if frame is None else f"{number:06d}/{frame:03d}.png")


def _write_png(path: Path, picture: np.ndarray) -> None:
    buffer = io.BytesIO()
    as_image(picture).save(buffer, format="PNG")
    files.write_whole(path, buffer.getvalue())


def _read_png(folder: Path, number: int, frame: int | None, largest: int | None) -> np.ndarray:
    path = _path(folder, number, frame)
    batches = (batch for batch in folder.glob("*.npz") if batch.stem.isdigit() and int(batch.stem) <= number)
    batch = max(batches, default=folder)
    with files.reading(path, f"delete {batch}, and the same command makes it again", "cannot be read"):
        picture = Image.open(io.BytesIO(path.read_bytes()))
        if picture.mode not in ("L", "RGB"):
            raise ValueError(f"its pixels are {picture.mode}, not grey or RGB")
        if largest is not None:
            picture.thumbnail((largest, largest))
        pixels = np.asarray(picture)
    return (pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1)


def write_sheets(
    folder: Path, rows: list[SheetRow], title: str, columns: Sequence[str] = (), suffix: str = "", strips: int = 3
) -> list[Path]:
    """Write a sheet of `rows`. For clips: their middle frames, an animation, and strips of frames of the first few.

    Returns:
        The files, with `suffix` before their extensions: sheet.png, and for clips clips.gif and frames-0.png, ….
    """
    columns = labels(columns, "prompt")
    sheet = folder / f"sheet{suffix}.png"
    if rows[0].images.ndim == 4:
        files.write_whole(sheet, draw_sheet(rows, title, columns))
        return [sheet]
    samples, count = rows[0].images.shape[:2]
    middle = [SheetRow(row.caption, row.images[:, count // 2]) for row in rows]
    files.write_whole(sheet, draw_sheet(middle, f"{title}; middle frames", columns, most=8))
    clips = folder / f"clips{suffix}.gif"
    files.write_whole(clips, draw_clips(rows, title, columns))
    written = [sheet, clips]
    frames = np.linspace(0, count - 1, min(count, STRIP)).round().astype(int)
    for index in range(min(strips, samples)):
        strip = [SheetRow(row.caption, row.images[index][frames]) for row in rows]
        name = f"{columns[index]}; {title}" if columns else title
        written.append(folder / f"frames{suffix}-{index}.png")
        files.write_whole(written[-1], draw_sheet(strip, name))
    return written
