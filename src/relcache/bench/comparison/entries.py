"""The methods that a benchmark compares: by name, with options, or from a file."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from relcache.bench import files
from relcache.bench.files import slug
from relcache.bench.rivals.base import Rival
from relcache.bench.rivals.registry import BROKEN, all_rivals, rival_of
from relcache.bench.sampling.budgets import has_budget, with_any_budget
from relcache.checks import did_you_mean, unknown
from relcache.methods import config_from_text, method_from_config, split_list, value_from_text
from relcache.methods.text import NUMBER


@dataclass(frozen=True)
class Entry:
    """One contestant of a comparison: a method of relcache or a rival.

    Attributes:
        name: its name in files and tables.
        config: for `relcache.method_from_config`; or of a rival, its name as "method" and its budget if it has one.
            Without a budget it is run at each number of full steps, otherwise once.
    """

    name: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:  # raise errors before anything is loaded
        if self.rival is None:
            method_from_config(with_any_budget(self.config))
            return
        for key, value in self.config.items():
            if key not in ("method", self.rival.budget):
                raise ValueError(unknown(f"option of {self.rival.name}", key, [self.rival.budget]))
            if key == self.rival.budget:
                self.rival.check(value)

    @property
    def rival(self) -> Rival | None:
        """The rival that it names; None for a method of relcache."""
        return rival_of(self.config)

    @property
    def fixed(self) -> bool:
        """Whether its own options decide its full steps."""
        return has_budget(self.config) if self.rival is None else self.rival.budget in self.config

    @property
    def title(self) -> str:
        """Its name in the tables of a race; runs of one contestant at several budgets share it."""
        return TITLES.get(self.name, self.name) if self.rival is None else self.rival.title


FILES = (".toml", ".yaml", ".yml")


def _orders(name: str, method: str = "", options: str = "") -> dict[str, str]:
    return {f"{name}-{order}": f"{method or name}:order={order}{options}" for order in (1, 2)}


PUBLISHED = {
    "fora": "fora", **_orders("taylorseer"), "taylorseer-p3-1": "taylorseer:order=1,phase=3", **_orders("rfe"),
    **_orders("rcs"), **_orders("rfc"),
}  # fmt: skip
"""The methods compared by default, beside ours: the peers, each half of RFC alone, and RFC."""

OURS = {
    **_orders("newton"),
    **_orders("rfe-newton", "rfe", ",direction=newton"),
    **_orders("rfc-newton", "rfc", ",direction=newton"),
}
DEFAULT = {"auto": "auto"}
WEIGHTS = {f"linear-{weight}": f"linear:weight={weight}" for weight in (0.8, 1.0, 1.2)}
PARTS = {
    "auto-uncorrected": "auto:corrector=none",
    "auto-even": "auto:growth=1.0",
    "auto-first-order": "auto:order=1",
    "auto-modules": "auto:granularity=module",
}
"""The default with one part taken away."""
FINER = {"auto-finer": "auto:finer=4"}
SHORT = {**DEFAULT, **PUBLISHED, **OURS, **WEIGHTS, **PARTS, **FINER}
TITLES = {
    "auto": "relcache, default", "auto-finer": "default, finer=4", "auto-uncorrected": "default, uncorrected",
    "auto-even": "default, even gaps",
    "auto-first-order": "default, order 1", "auto-modules": "default, at modules", "fora": "FORA",
    "taylorseer-1": "TaylorSeer, m=1", "taylorseer-2": "TaylorSeer, m=2",
    "taylorseer-p3-1": "TaylorSeer, other phase, m=1", "rfc-1": "RFC, m=1", "rfc-2": "RFC, m=2",
}  # fmt: skip

ABLATION = ("taylorseer-1", "rfe-1", "rcs-1", "rfc-1", *WEIGHTS)
"""The paper's ablation: first order with neither half, with each and with both; and fixed weights instead of RFE."""

ORDERED = sorted({known.rpartition("-")[0] or known for known in (*PUBLISHED, *OURS, *WEIGHTS)} | {*DEFAULT})

RACE = ("auto", *PARTS, *FINER, "fora", "taylorseer-1", "taylorseer-2", "taylorseer-p3-1", "rfc-1", "rfc-2")
"""The methods of relcache in a race, beside all rivals."""


def choose(text: str | None, rivals: bool = True) -> list[Entry]:
    """Return the methods of a comma-separated list, or of a TOML or YAML file; by default PUBLISHED and DEFAULT.

    A key of SHORT names one method, its part before the order (`rfc`) all orders. `ablation` means the paper's
    ablation, `all` all of SHORT, and `name:option=value,…` a method with options. A rival's name means that rival, its
    group (`solver`) the whole group, and `race` RACE and all rivals.

    Raises:
        ValueError: an unknown name (the message gives the nearest right one), wrong options, no method at all, or
            without `rivals` one of them.
    """
    if text is None:
        return [_short(name) for name in (*PUBLISHED, *DEFAULT)]
    chosen = from_file(Path(text)) if Path(text).suffix.lower() in FILES else _from_list(text)
    if not chosen:
        raise ValueError(
            f"{text!r} names no method besides full compute, which is in every table: nothing is left to compare; "
            "give --methods such as fora,rfc"
        )
    other = next((entry.name for entry in chosen if entry.rival), None)
    if other is not None and not rivals:
        raise ValueError(
            f"{other} is no method of relcache: it takes part in relcache bench race and its other benchmarks"
        )
    return chosen


def _from_list(text: str) -> list[Entry]:
    chosen: dict[str, Entry] = {}
    for part in split_methods(text):
        if part.lower() == "full":  # always in the table
            continue
        for entry in _named(part):
            name, number = entry.name, 1
            while name in chosen and chosen[name].config != entry.config:  # texts that differ only in punctuation
                number += 1
                name = f"{entry.name}-no{number}"
            chosen.setdefault(name, replace(entry, name=name))
    return list(chosen.values())


def _named(text: str) -> list[Entry]:
    name, rivals = text.lower(), all_rivals()
    groups: dict[str, Sequence[str]] = {
        group: [each.name for each in rivals.values() if each.group == group]
        for group in (rival.group for rival in rivals.values())
    }
    groups |= {"all": list(SHORT), "ablation": ABLATION, "race": (*RACE, *rivals)}
    groups |= {known: [known] for known in (*rivals, *SHORT)}
    hits = groups.get(name) or [known for known in SHORT if known.rpartition("-")[0] == name]
    if BROKEN and (name == "race" or not hits):
        raise ValueError("; ".join(BROKEN))
    if hits:
        return [entry for hit in hits for entry in ([_short(hit)] if hit in SHORT else _of_rival(rivals[hit]))]
    if ":" in text or "order" in config_from_text(name):
        return [Entry(slug(text), named_config(text))]
    shared = ", ".join(key for key in groups if key not in SHORT and key not in rivals)
    raise ValueError(
        f"unknown method {text!r}: {did_you_mean(text, [*groups, *ORDERED])}there are {', '.join(ORDERED)}, orders as "
        f"in rfc-2, and the groups {shared}; relcache-rivals and other packages add more"
    )


def _of_rival(rival: Rival) -> list[Entry]:
    """Return the entry of a rival, or one for each of its own values."""
    if not rival.values:
        return [Entry(rival.name, {"method": rival.name})]
    return [Entry(f"{rival.name}-{value:g}", {"method": rival.name, rival.budget: value}) for value in rival.values]


def _short(name: str) -> Entry:
    return Entry(name, config_from_text(SHORT[name]))


def is_usual(config: Mapping[str, Any], name: str) -> bool:
    """Whether `config` is the config of the short name, apart from the warm-up."""
    usual = config_from_text(SHORT[name]) if name in SHORT else None
    return usual == {key: value for key, value in config.items() if key != "warmup"}


def from_file(path: Path) -> list[Entry]:
    """Return the methods of a TOML file's `[[methods]]`, or of a YAML file's list `methods`.

    Each has the key `method`, that method's options, and optionally a `name`.

    Raises:
        ValueError: a file that cannot be read, other keys, or two methods with the same name.
    """
    is_toml = path.suffix.lower() == ".toml"
    with files.reading(path, "correct it, or give another --methods", "cannot be read as methods"):
        content = path.read_text(encoding="utf-8-sig")
        read = tomllib.loads(content) if is_toml else yaml.safe_load(content)
    listed = read.get("methods") if isinstance(read, dict) else None
    if not isinstance(listed, list) or set(read) != {"methods"} or not all(isinstance(item, dict) for item in listed):
        found = ", ".join(map(str, read)) if isinstance(read, dict) and read else type(read).__name__
        if found == "methods":
            found = f"methods that are {listed!r:.60}"
        raise ValueError(f"{path} has one key, 'methods', a list of tables; got {found}")
    entries: dict[str, Entry] = {}
    for number, item in enumerate(listed, 1):
        try:
            config = {str(key): _plain(str(key), value, is_toml) for key, value in item.items()}
            name = str(config.pop("name", "")) or _default_name(config)
            entry = Entry(slug(name if re.search("[A-Za-z0-9]", name) else f"method {name}"), config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"method {number} of {path}: {error}") from error
        if entry.name == "full":
            raise ValueError(f"method {number} of {path} is named 'full', like full compute: give it another name")
        if entry.name in entries:
            raise ValueError(f"{path} has two methods named {entry.name!r}: give each a name of its own")
        entries[entry.name] = entry
    return list(entries.values())


def _plain(key: str, value: Any, is_toml: bool) -> Any:
    """Return `value` if it is a finite number, a text, true, false, null, or a list of whole numbers.

    Raises:
        ValueError: a date, a table, or another value that no option takes.
    """
    if not is_toml and isinstance(value, str) and NUMBER.fullmatch(value):  # YAML 1.1 reads 1e-2 as a text
        return value_from_text(value)
    whole = isinstance(value, list) and all(type(part) is int for part in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if (value is None or isinstance(value, (bool, int, float, str)) or whole) and finite:
        return value
    raise ValueError(f"{key} is a number, a text or a list of step numbers, got {type(value).__name__} {value!s:.60}")


def _default_name(config: Mapping[str, Any]) -> str:
    options = [f"{key}-{json.dumps(value)}" for key, value in config.items() if key != "method"]
    return "-".join([str(config.get("method", "")), *options])


def split_methods(text: str) -> list[str]:
    """Return the methods in a comma-separated list: a comma before `option=` belongs to the method before it.

    Raises:
        ValueError: a bracket that is not closed.
    """
    methods: list[str] = []
    for part in split_list(text):
        if methods and re.match(r"\s*\w+\s*=", part):
            methods[-1] += f",{part}"
        else:
            methods.append(part)
    return [method.strip() for method in methods]


def named_config(text: str) -> dict[str, Any]:
    """Return the config of a short name or of a method's text, such as `rfc-1:threshold=1e-2`.

    Raises:
        ValueError: as in `config_from_text`, or an option is part of the short name already.
    """
    name, _, options = text.partition(":")
    if name.strip().lower() not in SHORT:
        return config_from_text(text)
    start = config_from_text(SHORT[name.strip().lower()])
    more = {key: value for key, value in config_from_text(f"full:{options}").items() if key != "method"}
    twice = next((key for key in more if key in start), None)
    if twice is not None:
        raise ValueError(f"{text!r} gives {twice} twice: the name {name} sets {twice}={start[twice]}")
    return {**start, **more}
