"""Write the results of a race: every run with its intervals, and the default against all others at equal time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import torch

from relcache.bench import files
from relcache.bench.comparison.comparison import Comparison, Variant
from relcache.bench.comparison.entries import TITLES
from relcache.bench.comparison.prepare import seeds_as_text
from relcache.bench.comparison.summaries import Column
from relcache.bench.race.data import least_distance
from relcache.bench.race.equal_time import Point, duels, interval
from relcache.bench.saved import RACE, read_part
from relcache.bench.tables import Columns, markdown_table, with_half_width

OWN = "auto"  # the entry that the others are compared with
RELCACHE = "relcache"  # the group of its methods


class Quality(NamedTuple):
    """A measure with one number for each sample: its heading, the measure, the number's name, and a format."""

    heading: str
    measure: str
    name: str
    form: str


QUALITIES = {
    "psnr": Quality("PSNR, dB", "pair", "psnr", ".2f"),
    "ssim": Quality("SSIM", "pair", "ssim", ".4f"),
    "lpips": Quality("LPIPS", "lpips", "lpips", ".4f"),
    "exact": Quality("to the exact solution, dB", "exact", "psnr", ".2f"),
    "right": Quality("all right", "recogniser", "right", ".3f"),
    "accuracy": Quality("class", "classifier", "accuracy", ".3f"),
    "image_reward": Quality("ImageReward", "image-reward", "image_reward", ".3f"),
    "clip": Quality("CLIP", "clip", "clip", ".2f"),
}
"""The measures of single samples; those that are taken are in the tables."""


def write_race(comparison: Comparison, columns: Mapping[str, Column]) -> dict[str, Any]:
    """Write race.json and race.md of a finished comparison, and return the content of the first.

    `columns` adds numbers of all samples together, such as Fréchet distances.
    """
    taken = {key: quality for key, quality in QUALITIES.items() if comparison.takes(quality.measure)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small matrices: more threads take longer
    try:
        runs = [_run(comparison, variant, taken, columns) for variant in comparison.variants]
    finally:
        torch.set_num_threads(threads)
    race = {
        "about": _about(comparison),
        "default": TITLES[OWN],
        "qualities": {key: quality.heading for key, quality in taken.items()},
        "columns": {key: column.heading for key, column in columns.items()},
        "runs": runs,
        "equal_time": _equal_time(comparison, runs),
        "least_distance_to_data": least_distance(comparison) if runs[0].get("frechet_data") is not None else None,
        "unfit": {entry.title: comparison.unfit[entry.name] for entry in comparison.entries
                  if entry.name in comparison.unfit},
    }  # fmt: skip
    files.write_json(comparison.out / RACE, race)
    files.write_whole(comparison.out / "race.md", _markdown(race, taken, columns).encode())
    return race


def _run(
    comparison: Comparison, variant: Variant, taken: Mapping[str, Quality], columns: Mapping[str, Column]
) -> dict[str, Any]:
    """Return one contestant at one budget: its cost, its time as a share of full compute's, and its qualities."""
    row = comparison.row(variant)
    shares = _shares(comparison, variant)
    rival, full = variant.entry.rival, variant is comparison.full
    run: dict[str, Any] = {
        "title": "full compute" if full else variant.entry.title,
        "method": variant.entry.name,
        "group": RELCACHE if rival is None else rival.group,
        **{key: row[key] for key in ("nfc_target", "nfc", "threshold", "interval", "tflops", "seconds", "memory_gb",
                                     "held_gb")},
        "share": statistics.median(shares) if shares else None,
        "share_least": min(shares, default=None),
        "share_most": max(shares, default=None),
    }  # fmt: skip
    against_full = ("pair", "lpips")
    for key, quality in taken.items():
        skipped = full and quality.measure in against_full
        run[key] = None if skipped else list(interval(_values(comparison, variant, quality)))
    return run | {key: column.summary(comparison, variant) for key, column in columns.items()}


def _values(comparison: Comparison, variant: Variant, quality: Quality) -> np.ndarray:
    return comparison.joined(variant, quality.measure, quality.name).double().numpy()


def _shares(comparison: Comparison, variant: Variant) -> list[float]:
    """Return each batch's time of denoising as a share of full compute's time at that moment."""
    shares = []
    for work in comparison.sampling(variant):
        part, _ = read_part(work.file)
        whole = comparison.settings.setup.steps * float(part["full_call"])
        share = float(part["denoising"]) / whole
        if not math.isnan(share):
            shares.append(share)
    return shares


def _equal_time(comparison: Comparison, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the contestants at the time of each run of the default, by PSNR to full compute."""
    by_title: dict[str, list[Point]] = {}
    own: dict[int, Point] = {}
    for variant, run in zip(comparison.variants, runs, strict=True):
        if variant is comparison.full or run["share"] is None or "psnr" not in run:
            continue
        point = Point(run["share"], _values(comparison, variant, QUALITIES["psnr"]))
        if variant.entry.name == OWN and variant.nfc is not None:
            own[variant.nfc] = point
        else:
            by_title.setdefault(run["title"], []).append(point)
    return [
        {
            "nfc": nfc,
            "share": point.share,
            "psnr": list(interval(point.values)),
            "others": [
                {"title": duel.title, "psnr": list(duel.quality), "lead": list(duel.lead), "parted": duel.parted}
                for duel in duels(point, by_title)
            ],
        }
        for nfc, point in own.items()
    ]


def _about(comparison: Comparison) -> str:
    settings = comparison.settings
    setup = settings.setup
    options = ", ".join(f"{name} {value}" for name, value in setup.options.items())
    return (
        f"{settings.samples} samples of {setup.model}, {setup.steps} steps, {options}, seeds "
        f"{seeds_as_text(settings.seeds)}, batches of {settings.batch}, {setup.dtype} on {setup.device}, "
        f"{date.today().isoformat()}"
    )


NOTE = (
    "Means over the samples with 95 % bootstrap intervals. Time is of denoising, as a share of full compute's time "
    "just before and after, the median over batches. PSNR and SSIM are to full compute. Thresholds and plans were "
    "found on other seeds."
)
EQUAL = (
    "Each contestant at the time that the default takes, on its own curve, linear between two runs. Before its fastest "
    "run and after its slowest one nothing is said. The lead is the default's mean less the contestant's. It is marked "
    "where the two intervals have no number in common."
)


def _markdown(race: Mapping[str, Any], taken: Mapping[str, Quality], columns: Mapping[str, Column]) -> str:
    lines = [f"{race['about']}.\n\n{NOTE}\n"]
    for duel in race["equal_time"]:
        lines.append(f"\n## At the time of {duel['nfc']} full steps: {duel['share']:.1%} of full compute\n")
        lines.append(f"relcache, default: {with_half_width(duel['psnr'], '.1f')} dB. {EQUAL}\n")
        rows = [
            {"title": other["title"], "psnr": with_half_width(other["psnr"], ".1f"),
             "lead": f"{other['lead'][0]:+.1f}" + ("" if other["parted"] else " (intervals meet)")}
            for other in duel["others"]
        ]  # fmt: skip
        lines.append(
            markdown_table(rows, [("contestant", "title", ""), ("PSNR, dB", "psnr", ""), ("lead", "lead", "")])
        )
    lines.append("\n## All runs\n")
    if race["least_distance_to_data"] is not None:
        lines.append(
            "Fréchet distances of few samples are too large: as many other scenes of the data have "
            f"{race['least_distance_to_data']:.0f} to the data.\n"
        )
    kept: list[tuple[str, str, str]] = [
        ("contestant", "title", ""), ("full", "full", ""), ("time", "share", ".1%"), ("s", "seconds", ".3f"),
        ("held, GB", "held_gb", ".4f"), ("peak, GB", "memory_gb", ".2f"),
    ]  # fmt: skip
    kept += [(quality.heading, key, "") for key, quality in taken.items()]
    kept += [(column.heading, key, column.form) for key, column in columns.items()]
    rows = [
        {
            **run,
            "full": f"{run['nfc']:.4g}",
            **{key: with_half_width(run[key], quality.form) for key, quality in taken.items()},
        }
        for run in race["runs"]
    ]
    used: Columns = [column for column in kept if any(row.get(column[1]) is not None for row in rows)]
    lines.append(markdown_table(rows, used))
    if race["unfit"]:
        lines.append("\n## Not run\n")
        lines += [f"- {title}: {reason}.\n" for title, reason in race["unfit"].items()]
    return "\n".join(lines)
