"""A folder of results as one page that needs nothing else: tables, figures, and pictures to compare by hand."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from relcache.bench import files
from relcache.bench.comparison.equal_cost import marked
from relcache.bench.pages.illustrations import images_of, of_benchmark
from relcache.bench.saved import SETTINGS, read_results, read_samples_table

PAGE = "report.html"
SHOWN = 8  # samples on the page
LARGEST = 256  # pixels of a picture's longer side on the page
COST = {"nfc": "full steps", "threshold": "τ", "tflops": "TFLOPs", "seconds": "s", "cache_gb": "cache, GB"}


def write_page(folder: Path) -> Path:
    """Write `report.html` into `folder`, which `relcache bench` or `demo` has written.

    Raises:
        ValueError: no results in `folder`, or damaged ones.
    """
    if not (folder / SETTINGS).exists():
        raise ValueError(f"{folder} holds no results of a benchmark")
    settings, rows = read_results(folder)
    counted, note = marked(rows, ".4g")
    drawn = of_benchmark(folder)
    figures = [path for path in drawn if path.suffix == ".svg"]
    sheets = [path for path in drawn if path.parent == folder]
    columns = {name: heading for name, heading in (COST | settings["columns"]).items()
               if any(row.get(name) is not None for row in rows)}  # fmt: skip
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        resources("relcache.bench.pages").joinpath("page.html").read_text(encoding="utf-8")
    )
    setup = settings["setup"]
    page = template.render(
        title=f"{setup['model']}: {len(settings['conditions'])} samples, {setup['steps']} steps",
        columns=columns,
        rows=rows,
        counts=[row["nfc"] for row in counted],
        note=note,
        figures=[
            {
                "name": path.stem,
                "caption": _caption(path.stem, settings["columns"]),
                "address": _address(path.read_bytes(), "image/svg+xml"),
            }
            for path in figures
        ],
        sheets=[
            {"name": path.stem, "address": _address(path.read_bytes(), f"image/{path.suffix[1:]}")} for path in sheets
        ],
        gallery=_script(_gallery(folder, settings)),
    )
    files.write_whole(folder / PAGE, page.encode())
    return folder / PAGE


def _script(value: Any) -> str:
    """JSON that stands in a script element: no prompt can end the element, or begin one in it or a comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _caption(name: str, columns: Mapping[str, str]) -> str:
    if name == "traces":
        return "Error of the predicted input of the first module, its sum, and the full steps that it led to"
    return f"{columns[name.removesuffix('-flops')]} over FLOPs per sample"


def _gallery(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The first samples of each method as addresses of data, and what was measured of each."""
    shown = settings["conditions"][:SHOWN]
    cells = []
    measured = read_samples_table(folder, settings["cells"])
    for cell, rows in zip(settings["cells"], measured, strict=True):
        pictures = images_of(folder / settings["runs"] / cell["name"], settings, SHOWN)
        notes = [_note(row, settings["columns"]) for row in rows[:SHOWN]]
        cells.append({"method": cell["method"], "nfc": cell["nfc_target"], "notes": notes,
                      "pictures": [_picture(picture) for picture in pictures]})  # fmt: skip
    return {"conditions": [str(condition) for condition in shown], "cells": cells}


def _note(row: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """What was measured of one sample, as a line."""
    values = {heading: row[name] for name, heading in columns.items() if row.get(name)}
    said = ", ".join(f"{heading} {_short(value)}" for heading, value in values.items())
    return f"seed {row['seed']}" + (f": {said}" if said else "")


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _picture(pixels: np.ndarray) -> str:
    """A picture (channels, height, width) or a clip (frames, …), in [0, 1], as an address of data."""
    clip = pixels if pixels.ndim == 4 else pixels[None]
    frames = []
    for frame in (clip.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8):
        picture = Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame).convert("RGB")
        picture.thumbnail((LARGEST, LARGEST))
        frames.append(picture)
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "WEBP", quality=90, method=4, save_all=len(frames) > 1, append_images=frames[1:], duration=167, loop=0
    )
    return _address(buffer.getvalue(), "image/webp")


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
