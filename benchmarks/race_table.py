"""Print a short table of races: at each budget the default and the best contestant of each group, at equal time.

    python benchmarks/race_table.py benchmarks/results/race/race-small-flux benchmarks/results/race/race-small-video

A cell has the PSNR in dB to full compute and to the exact solution. A star marks a contestant for which the
interval of the default's lead holds 0. Below the table stand all contestants that are ahead of the default or even with
it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from relcache.bench.pages.illustrations import GROUPS
from relcache.bench.saved import RACE

KEYS = ("psnr", "exact")
PUBLISHED = ("FORA", "TaylorSeer, m=1", "TaylorSeer, m=2", "RFC, m=1", "RFC, m=2")


def rows_of(race: dict[str, Any], table: dict[str, Any]) -> list[list[str]]:
    """Return the rows of one budget: the default, and the best of each group by PSNR to full compute."""
    groups = {run["title"]: run["group"] for run in race["runs"]}
    share, default = table["share"], table["default"]
    rows = [
        [
            f"**relcache, default, {table['nfc']} full steps**",
            f"{share:.1%}",
            *(f"{default[key][0]:.1f}" for key in KEYS),
        ]
    ]
    for group in GROUPS:
        here = [
            other for other in table["others"]
            if groups[other["title"]] == group and (group != "relcache" or other["title"] in PUBLISHED)
        ]  # fmt: skip
        if here:
            best = here[0]  # they are in order
            cells = [f"{best[key]['value'][0]:.1f}{'' if best[key]['parted'] else '*'}" for key in KEYS]
            rows.append([best["title"], f"{share:.1%}", *cells])
    return rows


def not_behind(table: dict[str, Any], key: str) -> list[str]:
    """Return the contestants that are ahead of the default by one quality, or whose intervals meet."""
    return [
        f"{other['title']} {other[key]['lead'][0]:+.1f}"
        for other in table["others"]
        if other[key]["lead"][0] < 0 or not other[key]["parted"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", type=Path, nargs="+")
    for folder in parser.parse_args().races:
        race = json.loads((folder / RACE).read_text(encoding="utf-8"))
        print(f"\n{race['about']}\n\n| at equal time | time | PSNR to full compute | to the exact solution |")
        print("| --- | --- | --- | --- |")
        full = race["runs"][0]
        print(f"| full compute | 100 % | – | {full['exact'][0]:.1f} |")
        for table in race["equal_time"]:
            for row in rows_of(race, table):
                print(f"| {' | '.join(row)} |")
        for key in KEYS:
            for table in race["equal_time"]:
                print(f"{key}, {table['nfc']} full steps, the default is not ahead of: {not_behind(table, key)}")


if __name__ == "__main__":
    main()
