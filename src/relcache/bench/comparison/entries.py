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
from relcache.bench.sampling.calibration import has_budget, with_any_budget
from relcache.bench.sampling.gallery import slug
from relcache.checks import unknown
from relcache.methods import BY_NAME, NUMBER, config_from_text, method_from_config, value_from_text


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        name: what files and tables call it.
        config: for `relcache.method_from_config`; without an interval or threshold these follow from the number of
            full steps that is asked for, with one it is run once, as it is.
    """

    name: str
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        method_from_config(with_any_budget(self.config))  # a mistake shows before anything is loaded

    @property
    def fixed(self) -> bool:
        """Whether its own options decide its full steps."""
        return has_budget(self.config)


FILES = (".toml", ".yaml", ".yml")
PUBLISHED = {
    "fora": "fora",
    "taylorseer-1": "taylorseer:order=1",
    "taylorseer-2": "taylorseer:order=2",
    "taylorseer-p3-1": "taylorseer:order=1,phase=3",
    "rfe-1": "rfe:order=1",
    "rfe-2": "rfe:order=2",
    "rcs-1": "rcs:order=1",
    "rcs-2": "rcs:order=2",
    "rfc-1": "rfc:order=1",
    "rfc-2": "rfc:order=2",
}
"""What is compared unless methods are named, beside our default: the peers, each half of RFC alone, and RFC."""

OURS = {
    "newton-1": "newton:order=1",
    "newton-2": "newton:order=2",
    "rfe-newton-1": "rfe:order=1,direction=newton",
    "rfe-newton-2": "rfe:order=2,direction=newton",
    "rfc-newton-1": "rfc:order=1,direction=newton",
    "rfc-newton-2": "rfc:order=2,direction=newton",
}
DEFAULT = {"auto": "auto"}
WEIGHTS = {f"linear-{weight}": f"linear:weight={weight}" for weight in (0.8, 1.0, 1.2)}
SHORT = {**DEFAULT, **PUBLISHED, **OURS, **WEIGHTS}

ABLATION = ("taylorseer-1", "rfe-1", "rcs-1", "rfc-1", *WEIGHTS)
"""The paper's ablation: first order with neither half, with each and with both; and fixed weights instead of RFE."""


def choose(text: str | None) -> list[Entry]:
    """The methods of a comma-separated list, or of a TOML or YAML file.

    A name of the table above stands for one method, a part of names for all orders (`rfc`), `ablation` for the paper's
    ablation, `all` for everything; `name:option=value,…` is a method with options. None is the published comparison and
    our default.

    Raises:
        ValueError: an unknown name (the message gives the nearest right one), wrong options, or no method at all.
    """
    if text is None:
        return [_short(name) for name in (*PUBLISHED, *DEFAULT)]
    if Path(text).suffix.lower() in FILES:
        chosen = {entry.name: entry for entry in from_file(Path(text))}
    else:
        chosen = _listed(text)
    if not chosen:
        raise ValueError(
            f"{text!r} names no method beside full compute, which is in every table: nothing is left to compare; "
            "give --methods such as fora,rfc"
        )
    return list(chosen.values())


def _listed(text: str) -> dict[str, Entry]:
    chosen: dict[str, Entry] = {}
    for part in (part.strip() for part in split_methods(text)):
        if part.lower() == "full":  # always there
            continue
        for entry in _named(part):
            name, number = entry.name, 1
            while name in chosen and chosen[name].config != entry.config:  # differ in a sign
                number += 1
                name = f"{entry.name}-no{number}"
            chosen.setdefault(name, replace(entry, name=name))
    return chosen


def _named(text: str) -> list[Entry]:
    name = text.lower()
    groups: dict[str, Sequence[str]] = {"all": list(SHORT), "ablation": ABLATION}
    hits = groups.get(name) or [known for known in SHORT if known == name or known.rpartition("-")[0] == name]
    if hits:
        return [_short(hit) for hit in hits]
    if ":" in text or _with_order(name) is not None:
        return [Entry(slug(text), named_config(text))]
    everything = [*SHORT, *sorted({known.rpartition("-")[0] or known for known in SHORT}), *groups]
    raise ValueError(unknown("method", text, everything))


def _short(name: str) -> Entry:
    return Entry(name, config_from_text(SHORT[name]))


def is_usual(config: Mapping[str, Any], name: str) -> bool:
    """Whether `config` is that of the short name, whatever its warm-up."""
    usual = config_from_text(SHORT[name]) if name in SHORT else None
    return usual == {key: value for key, value in config.items() if key != "warmup"}


def from_file(path: Path) -> list[Entry]:
    """The methods of a TOML file's `[[methods]]`, or of a YAML file's list `methods`.

    Each has the key `method` and that method's options, and may have a `name`.

    Raises:
        ValueError: a file that cannot be read, other keys, or two methods of one name.
    """
    is_toml = path.suffix.lower() == ".toml"
    with files.reading(path, "mend it, or give another --methods", "cannot be read as methods"):
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
            config = {str(key): _plain(str(key), value) for key, value in item.items()}
            if not is_toml:  # YAML 1.1 takes 1e-2 for a text
                config = {key: _number_or(value) for key, value in config.items()}
            name = str(config.pop("name", "")) or _default_name(config)
            entry = Entry(slug(name if re.search("[A-Za-z0-9]", name) else f"method {name}"), config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"method {number} of {path}: {error}") from error
        if entry.name == "full":
            raise ValueError(f"method {number} of {path} is named 'full', as full compute is: give it another name")
        if entry.name in entries:
            raise ValueError(f"{path} has two methods named {entry.name!r}: give each a name of its own")
        entries[entry.name] = entry
    return list(entries.values())


def _plain(key: str, value: Any) -> Any:
    """`value`, if it is a number, a text, true, false, null, or a list of whole numbers.

    Raises:
        ValueError: a date, a table, or something else that no option takes.
    """
    whole = isinstance(value, list) and all(type(part) is int for part in value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if (value is None or isinstance(value, (bool, int, float, str)) or whole) and finite:
        return value
    raise ValueError(f"{key} is a number, a text or a list of step numbers, got {type(value).__name__} {value!s:.60}")


def _number_or(value: Any) -> Any:
    return value_from_text(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _default_name(config: Mapping[str, Any]) -> str:
    options = "-".join(f"{key}-{json.dumps(value)}" for key, value in config.items() if key != "method")
    return f"{config.get('method', '')}-{options}" if options else str(config.get("method", ""))


def split_methods(text: str) -> list[str]:
    """The methods in a comma-separated list: a comma before `option=` belongs to the method before it.

    Raises:
        ValueError: a bracket that is not closed.
    """
    if text.count("[") != text.count("]"):
        raise ValueError(f"{text!r} has a bracket that is not closed, or not opened")
    return [part for part in re.split(r",(?!\s*\w+\s*=)(?![^\[]*\])", text) if part.strip()]


def named_config(text: str) -> dict[str, Any]:
    """The config of a method as a short name or `name-order`, or as any name with options: `rfc-1:threshold=1e-2`.

    Raises:
        ValueError: as `config_from_text`, or an option that the name has given already.
    """
    options = config_from_text(text)
    name = options.pop("method").lower()
    start = config_from_text(SHORT[name]) if name in SHORT else _with_order(name)
    if start is None:
        return {"method": name, **options}
    twice = next((key for key in options if key in start), None)
    if twice is not None:
        raise ValueError(f"{text!r} gives {twice} twice: the name {name} stands for {twice}={start[twice]}")
    return {**start, **options}


def _with_order(name: str) -> dict[str, Any] | None:
    """The config of `name-order`, such as rfc-3; None of other names."""
    base, dash, order = name.rpartition("-")
    known = dash and base in BY_NAME and order.isascii() and order.isdigit()
    return {"method": base, "order": int(order)} if known else None
