"""Write the results of a race: every run with its intervals, and the default against all others at equal time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from typing import Any, NamedTuple

import numpy as np
import torch

from relcache.bench import files
from relcache.bench.comparison.comparison import Comparison, Variant
from relcache.bench.comparison.entries import TITLES
from relcache.bench.comparison.prepare import about
from relcache.bench.comparison.summaries import Column
from relcache.bench.race.data import least_distance
from relcache.bench.race.equal_time import Point, duel, interval
from relcache.bench.saved import RACE, read_part
from relcache.bench.tables import Columns, equal_time_rows, markdown_table, with_half_width

COMPARED = ("psnr", "exact")  # the qualities that are compared at equal time
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
        "unfit": comparison.not_run(lambda entry: entry.title),
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
    calls = int(read_part(comparison.sampling(comparison.full)[0].file)[0]["calls"])
    for work in comparison.sampling(variant):
        part, _ = read_part(work.file)
        whole = calls * float(part["full_call"])
        share = float(part["denoising"]) / whole
        if not math.isnan(share):
            shares.append(share)
    return shares


def _equal_time(comparison: Comparison, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the contestants at the time of each run of the default, by PSNR to full compute and to the exact solution.

    They are in the order of the first, best first. `slower` and `faster` name those whose runs all take longer, or all
    end before.
    """
    timed = [
        (variant, run) for variant, run in zip(comparison.variants, runs, strict=True)
        if variant is not comparison.full and run["share"] is not None
    ]  # fmt: skip
    qualities = [key for key in COMPARED if key in runs[0]]
    curves: dict[str, dict[str, list[Point]]] = {key: {} for key in qualities}
    own: dict[str, dict[int, Point]] = {key: {} for key in qualities}
    for variant, run in timed:
        shares = _shares(comparison, variant)
        for key in qualities:
            point = Point(shares, _values(comparison, variant, QUALITIES[key]))
            if variant.entry.name == OWN and variant.nfc is not None:
                own[key][variant.nfc] = point
            else:
                curves[key].setdefault(run["title"], []).append(point)
    tables = []
    for nfc in own[qualities[0]] if qualities else ():
        others: list[dict[str, Any]] = []
        share = own[qualities[0]][nfc].share
        out_of_reach: dict[str, list[str]] = {"slower": [], "faster": []}
        for title, curve in curves[qualities[0]].items():
            times = [point.share for point in curve]
            if not min(times) <= share <= max(times):
                out_of_reach["slower" if share < min(times) else "faster"].append(title)
            found = {key: duel(own[key][nfc], curves[key][title]) for key in qualities}
            if None not in found.values():
                others.append({"title": title, **{key: asdict(value) for key, value in found.items() if value}})
        tables.append({
            "nfc": nfc,
            "share": share,
            "default": {key: interval(own[key][nfc].values) for key in qualities},
            "others": sorted(others, key=lambda other: -other[qualities[0]]["value"].mean),
            **out_of_reach,
        })  # fmt: skip
    return tables


def _about(comparison: Comparison) -> str:
    began = float(read_part(comparison.sampling(comparison.full)[0].file)[0]["began"])
    return f"{about(comparison)}, {date.fromtimestamp(began).isoformat()}"


NOTE = (
    "Means over the samples with 95 % bootstrap intervals. Time is of denoising, as a share of full compute's time "
    "just before and after, the median over batches. PSNR and SSIM are to full compute. Thresholds and plans were "
    "found on other seeds.\n\n"
    "At equal time: each contestant within the time that the default takes, on its own curve, linear between two runs, "
    "or at its best faster run. Curves bend upwards, so the line between two runs is a little too low for a "
    "contestant; solvers have runs in between. Before its fastest run and after its slowest one nothing is said. The "
    "lead is the default's mean less the contestant's over the same samples. Its interval also counts the spread of "
    "times; it is in bold where the interval leaves out 0. A better solver comes nearer to the exact solution than "
    "full compute does, which bounds its PSNR to full compute."
)


OUT_OF_REACH = {"slower": "All runs take longer", "faster": "All runs are faster"}


def _markdown(race: Mapping[str, Any], taken: Mapping[str, Quality], columns: Mapping[str, Column]) -> str:
    lines = [f"{race['about']}.\n\n{NOTE}\n"]
    for table in race["equal_time"]:
        lines.append(f"\n## At the time of {table['nfc']} full steps: {table['share']:.1%} of full compute\n")
        headings: list[tuple[str, str, str]] = [("contestant", "title", "")]
        for key in table["default"]:
            headings += [(taken[key].heading, key, ""), ("lead", f"{key}_lead", "")]
        rows = equal_time_rows(race, table)
        for row in rows:
            row |= {f"{key}_lead": f"**{row[f'{key}_lead']}**" for key, parted in row["parted"].items() if parted}
        lines.append(markdown_table(rows, headings))
        lines += [f"{OUT_OF_REACH[key]}: {', '.join(table[key])}.\n" for key in OUT_OF_REACH if table[key]]
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
