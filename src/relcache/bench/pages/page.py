"""Write a folder of results as one self-contained page: tables, figures, and pictures to compare by hand."""

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

from relcache.bench import files
from relcache.bench.figures.sheet import as_image
from relcache.bench.pages.illustrations import draw_benchmark, draw_race, first_images
from relcache.bench.saved import (
    RACE,
    RACE_FORM,
    SETTINGS,
    about_of,
    captions_of,
    read_results,
    read_samples_table,
)
from relcache.bench.tables import equal_time_rows, flops_unit, formatted

PAGE = "report.html"
SAMPLES_SHOWN, CELLS_WITH_ALL = 8, 60  # a page with more cells shows half as many samples
COST = {"nfc": "full steps", "threshold": "τ", "tflops": "TFLOPs", "seconds": "s", "cache_gb": "cache, GB"}
EXPLAINED = {
    "nfc": "steps that were computed in full, mean over the samples",
    "threshold": "threshold of the error signal, found on other seeds",
    "tflops": "floating point operations of a sample, two for a multiply-add",
    "seconds": "seconds of a sample on the machine that made it, text encoders and decoder included",
    "cache_gb": "greatest size of the cache in GB",
    "psnr": "peak signal-to-noise ratio to full compute of the same seed, in dB; higher is nearer",
    "ssim": "structural similarity to full compute, up to 1; higher is nearer",
    "lpips": "perceptual distance to full compute; lower is nearer",
    "exact": "peak signal-to-noise ratio to the exact solution, in dB; higher is nearer",
    "accuracy": "share of pictures in which the shipped classifier sees the requested class",
    "frechet": "Fréchet distance of the classifier's features to those of full compute; lower is nearer",
    "kind": "share of samples in which the recogniser finds the kinds of shapes that the prompt names",
    "colour": "the same for their colours",
    "size": "the same for their sizes",
    "place": "the same for their places",
    "motion": "the same for their motions",
    "right": "share of samples in which the recogniser finds every part of the prompt",
    "fid2fc": "Fréchet inception distance to the samples of full compute; lower is nearer",
    "sfid2fc": "the same of spatial features",
    "fid": "Fréchet inception distance to the reference pictures; lower is better",
    "sfid": "the same of spatial features",
    "is": "inception score; higher is better",
    "image_reward": "ImageReward; higher is better",
    "clip": "similarity of picture and prompt by CLIP; higher is better",
    "vbench": "VBench's total of all its dimensions in percent; higher is better",
}
"""The meaning of each column."""


def write_page(folder: Path) -> Path:
    """Write `report.html` into `folder`, which holds the results of `relcache bench` or `demo`.

    Raises:
        ValueError: no results in `folder`, or damaged ones.
    """
    if not (folder / SETTINGS).exists():
        raise ValueError(f"{folder} holds no results of a benchmark")
    settings, rows = read_results(folder)
    counts, note = formatted(rows, [("full steps", "nfc", ".4g")])
    drawn = draw_benchmark(folder)
    race = files.read_json(folder / RACE, RACE_FORM) if (folder / RACE).exists() else None
    if race is not None:
        drawn += draw_race(folder)
    columns = {name: heading for name, heading in (COST | settings["columns"]).items()
               if any(row.get(name) is not None for row in rows)}  # fmt: skip
    unit, scale = flops_unit([row["tflops"] for row in rows])
    columns |= {"tflops": unit} if "tflops" in columns else {}
    rows = [{**row, "tflops": None if row["tflops"] is None else row["tflops"] * scale} for row in rows]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        resources("relcache.bench.pages").joinpath("page.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=about_of(settings),
        explained={heading: EXPLAINED[name] for name, heading in columns.items() if name in EXPLAINED},
        columns=columns,
        rows=rows,
        counts=[count for (count,) in counts],
        note=note,
        race=race and _race(race),
        figures=[
            {"name": path.stem, "caption": _caption(path.stem, settings["columns"]),
             "address": _address(path.read_bytes(), "image/svg+xml")}
            for path in drawn if path.suffix == ".svg"
        ],
        sheets=[
            {"name": path.stem, "address": _address(path.read_bytes(), f"image/{path.suffix[1:]}")}
            for path in drawn if path.parent == folder
        ],
        gallery=_script(_gallery(folder, settings)),
    )  # fmt: skip
    files.write_whole(folder / PAGE, page.encode())
    return folder / PAGE


def _race(race: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tables of a race at equal time, with texts for the intervals."""
    tables = [
        {"nfc": table["nfc"], "share": f"{table['share']:.1%}", "rows": equal_time_rows(race, table),
         "qualities": {key: race["qualities"][key] for key in table["default"]}}
        for table in race["equal_time"]
    ]  # fmt: skip
    return {"tables": tables, "unfit": race["unfit"]}


def _script(value: Any) -> str:
    """Return JSON for a script element, escaped so that no prompt can end it or begin a tag or comment."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _caption(name: str, columns: Mapping[str, str]) -> str:
    if name.startswith("race-"):
        return "Quality over measured time, a panel for each group of contestants; bands are 95 % intervals"
    if name == "traces":
        return "Error of the predicted input of the first module, its sum, and the full steps that it led to"
    return f"{columns[name.removesuffix('-flops')]} over FLOPs per sample"


def _gallery(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first samples of each method as data addresses, with the measured numbers of each."""
    most = SAMPLES_SHOWN if len(settings["cells"]) <= CELLS_WITH_ALL else SAMPLES_SHOWN // 2
    conditions = captions_of(settings)[:most]
    cells = []
    measured = read_samples_table(folder, settings["cells"])
    for cell, rows in zip(settings["cells"], measured, strict=True):
        pictures = first_images(folder / settings["runs"] / cell["name"], settings, most)
        notes = [_note(row, settings["columns"]) for row in rows[:most]]
        cells.append({"method": cell["method"], "nfc": cell["nfc_target"], "notes": notes,
                      "pictures": [_picture(picture) for picture in pictures]})  # fmt: skip
    return {"conditions": conditions, "cells": cells}


def _note(row: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """Return the measured numbers of one sample as a line."""
    values = {heading: row[name] for name, heading in columns.items() if row.get(name)}
    measured = ", ".join(f"{heading} {_short(value)}" for heading, value in values.items())
    return f"seed {row['seed']}" + (f": {measured}" if measured else "")


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def _picture(pixels: np.ndarray) -> str:
    """Return a uint8 picture (channels, height, width) or clip (frames, …) as a data address."""
    frames = [as_image(frame).convert("RGB") for frame in (pixels if pixels.ndim == 4 else pixels[None])]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "WEBP", quality=90, method=4, save_all=len(frames) > 1, append_images=frames[1:], duration=167, loop=0
    )
    return _address(buffer.getvalue(), "image/webp")


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
