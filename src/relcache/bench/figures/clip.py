"""Clips side by side, as an animated GIF: a row per method, the same prompts in columns."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from relcache.bench.figures.sheet import Row, draw_sheet


def draw_clips(rows: list[Row], title: str, columns: Sequence[str] = (), most: int = 6, rate: float = 6.0) -> bytes:
    """A GIF file, repeated for ever, of the first `most` clips of each row at `rate` frames per second.

    The images of `rows` are clips (n, frames, channels, height, width) in [0, 1].
    """
    frames = []
    for frame in range(rows[0].images.shape[1]):
        still = [Row(row.caption, row.images[:, frame]) for row in rows]
        with Image.open(io.BytesIO(draw_sheet(still, title, columns, most, dpi=80))) as sheet:
            frames.append(sheet.convert("RGB").quantize(128, dither=Image.Dither.NONE))
    return _gif(frames, rate)


def clip_gif(clip: np.ndarray, rate: float = 6.0, least: int = 256) -> bytes:
    """A GIF file of one clip (frames, channels, height, width) in [0, 1]; a small one is enlarged to `least` pixels."""
    times = max(1, least // clip.shape[-1])
    frames = []
    for frame in (clip.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8):
        picture = Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame).convert("RGB")
        size = (picture.width * times, picture.height * times)
        frames.append(picture.resize(size, Image.Resampling.NEAREST).quantize(256, dither=Image.Dither.NONE))
    return _gif(frames, rate)


def _gif(frames: list[Image.Image], rate: float) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, disposal=1
    )
    return buffer.getvalue()
