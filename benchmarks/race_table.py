"""Print races as short tables: the default's lead over its best rival, and chosen contestants at equal time.

    python benchmarks/race_table.py benchmarks/results/race/race-small-flux benchmarks/results/race/race-small-video

The first table has a row for each race and quality, PSNR in dB to full compute or to the exact solution, and a column
for each number of full steps of the default. A rival is a contestant that is not of relcache. Then each race has a
table of chosen contestants: a cell has both PSNRs, each with a star if the interval of the default's lead holds 0, and
with an arrow if the contestant is ahead. A dash: it is not as fast, or all its runs are faster. Below it stand all
contestants that are ahead of the default or even with it. With --best 14 only one table is printed: at the time of 14
full steps of the default, the best contestant of each group.
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
    "cache-dit DBCache + TaylorSeer, m=1", "DPCache", "MeanCache", "Spectrum, half a line", "HiCache, m=2", "TeaCache",
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


def best_rival(race: dict[str, Any], table: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the contestant of the best quality at one time that is not of relcache."""
    groups = {run["title"]: run["group"] for run in race["runs"]}
    rivals = [other for other in table["others"] if groups[other["title"]] != OWN]
    return max(rivals, key=lambda other: other[key]["value"][0], default=None)


def leads_of(race: dict[str, Any], key: str) -> list[str]:
    """Return the default's lead over its best rival at each number of full steps."""
    cells = []
    for table in race["equal_time"]:
        best = best_rival(race, table, key)
        if best is None:
            cells.append("–")
            continue
        mean, least, most = best[key]["lead"]
        lead = f"{mean:+.1f} [{least:+.1f}, {most:+.1f}]"
        apart = best[key]["value"][2] < table["default"][key][1]
        name = best["title"].removeprefix("no cache: ")
        cells.append(f"{f'**{lead}**' if apart else lead if best[key]['parted'] else f'even, {lead}'} {name}")
    return cells


def not_behind(table: dict[str, Any], key: str) -> list[str]:
    """Return the contestants that are ahead of the default by one quality, or even with it."""
    return [
        f"{other['title']} {'even' if not other[key]['parted'] else 'AHEAD'} {other[key]['lead'][0]:+.1f}"
        for other in table["others"]
        if other[key]["lead"][0] < 0 or not other[key]["parted"]
    ]


GROUPS = {
    "solver": "fewer steps, with the best of eight solvers", "diffusers": "the best cache of diffusers",
    "cache-dit": "the best cache of cache-dit", "equations": "the best of other papers, by their equations",
}  # fmt: skip


def best_of_groups(races: list[dict[str, Any]], nfc: int) -> list[str]:
    """Return the rows of a short table: a column for each race, PSNR to full compute with half of its interval."""
    tables = [next(table for table in race["equal_time"] if table["nfc"] == nfc) for race in races]
    rows = {"**relcache, the default**": [table["default"]["psnr"] for table in tables]}
    for group, name in GROUPS.items():
        for race, table in zip(races, tables, strict=True):
            groups = {run["title"]: run["group"] for run in race["runs"]}
            values = [other["psnr"]["value"] for other in table["others"] if groups[other["title"]] == group]
            rows.setdefault(name, []).append(max(values))
    return [
        f"| {name} | {' | '.join(f'{mean:.1f} ± {(most - least) / 2:.1f}' for mean, least, most in values)} |"
        for name, values in rows.items()
    ]


def main() -> None:
    """Print the tables of races."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("races", type=Path, nargs="+")
    parser.add_argument("--best", type=int, help="a number of full steps of the default")
    arguments = parser.parse_args()
    folders = arguments.races
    races = {folder.name: json.loads((folder / RACE).read_text(encoding="utf-8")) for folder in folders}
    if arguments.best is not None:
        print("\n".join(best_of_groups(list(races.values()), arguments.best)))
        return
    numbers = [str(table["nfc"]) for table in next(iter(races.values()))["equal_time"]]
    print(f"| lead in dB, and the best rival | {' | '.join(numbers)} |\n{'| --- ' * (len(numbers) + 1)}|")
    for key in KEYS:
        for name, race in races.items():
            if key in race["qualities"]:
                print(f"| {name.removeprefix('race-')}, {race['qualities'][key]} | {' | '.join(leads_of(race, key))} |")
    for race in races.values():
        print(f"\n{race['about']}\n")
        for row in rows_of(race):
            print(f"| {' | '.join(row)} |")
        for table in race["equal_time"]:
            for key in KEYS:
                print(f"{table['nfc']}, {key}: {', '.join(not_behind(table, key)) or 'none'}")


if __name__ == "__main__":
    main()
