"""Print races as short tables: the default and chosen contestants at equal time, a column for each budget.

    python benchmarks/race_table.py benchmarks/results/race/race-small-flux benchmarks/results/race/race-small-video

A cell has the PSNR in dB to full compute and to the exact solution, each with a star if the interval of the default's
lead holds 0, and with an arrow if the contestant is ahead. A dash: it is not as fast, or all its runs are faster. Below
each table stand all contestants that are ahead or even, and the best rival by each quality.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from relcache.bench.saved import RACE

KEYS = ("psnr", "exact")
OWN = "relcache"  # the group
CHOSEN = (
    "default, finer=4", "no cache: UniPC", "no cache: DPM-Solver++ 3M", "no cache: the same scheduler",
    "diffusers SeaCache, any number of skips", "diffusers TaylorSeer lite, m=1", "diffusers FirstBlockCache",
    "cache-dit DBCache + TaylorSeer, m=1", "DPCache", "MeanCache", "Spectrum, half a line", "HiCache", "TeaCache",
    "RFC, m=2", "TaylorSeer, other phase, m=1", "TaylorSeer, m=1", "FORA",
)  # fmt: skip


def cell(other: dict[str, Any]) -> str:
    """Return both qualities of a contestant at one time."""
    parts = []
    for key in KEYS:
        lead, parted = other[key]["lead"][0], other[key]["parted"]
        parts.append(f"{other[key]['value'][0]:.1f}{'*' if not parted else '↑' if lead < 0 else ''}")
    return " · ".join(parts)


def rows_of(race: dict[str, Any]) -> list[list[str]]:
    """Return the cells of the short table: a heading, the default, and the chosen contestants."""
    tables = race["equal_time"]
    rows = [["full steps of the default (its time)", *(f"{each['nfc']} ({each['share']:.0%})" for each in tables)]]
    own = [" · ".join(f"{each['default'][key][0]:.1f}" for key in KEYS) for each in tables]
    rows += [["---"] * len(rows[0]), [f"**{race['default']}**", *own]]
    for title in CHOSEN:
        found = [next((other for other in each["others"] if other["title"] == title), None) for each in tables]
        if any(found):
            rows.append([title, *("–" if other is None else cell(other) for other in found)])
    return rows


def not_behind(table: dict[str, Any], key: str) -> list[str]:
    """Return the contestants that are ahead of the default by one quality, or even with it."""
    return [
        f"{other['title']} {'even' if not other[key]['parted'] else 'AHEAD'} {other[key]['lead'][0]:+.1f}"
        for other in table["others"]
        if other[key]["lead"][0] < 0 or not other[key]["parted"]
    ]


def main() -> None:
    """Print the tables of races."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", type=Path, nargs="+")
    for folder in parser.parse_args().races:
        race = json.loads((folder / RACE).read_text(encoding="utf-8"))
        groups = {run["title"]: run["group"] for run in race["runs"]}
        print(f"\n{race['about']}\n")
        for row in rows_of(race):
            print(f"| {' | '.join(row)} |")
        for table in race["equal_time"]:
            for key in KEYS:
                rivals = [other for other in table["others"] if groups[other["title"]] != OWN]
                best = max(rivals, key=lambda other: other[key]["value"][0], default=None)
                if best:
                    mean, least, most = best[key]["lead"]
                    apart = best[key]["value"][2] < table["default"][key][1]
                    print(f"{table['nfc']}, {key}: best rival {best['title']}, lead {mean:+.2f} [{least:+.2f}, "
                          f"{most:+.2f}], {'own intervals part' if apart else 'own intervals meet'}; ahead or even: "
                          f"{', '.join(not_behind(table, key)) or 'none'}")  # fmt: skip


if __name__ == "__main__":
    main()
