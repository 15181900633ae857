"""A preset: the full steps found for one model, scheduler and method. Imports nothing of sessions or calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from relcache.checks import check_whole, did_you_mean
from relcache.correctors import CORRECTORS
from relcache.forecasters import FORECASTERS
from relcache.method import Method
from relcache.models.origin import Component, Origin
from relcache.presets.writing import write_whole
from relcache.schedules import Plan

VERSION = 1
OPTIONS = ("granularity", "cache_dtype", "offload", "memory_limit")  # of the method


@dataclass(frozen=True)
class Preset:
    """Full steps found by `relcache.calibrate` for one model, scheduler and method.

    Attributes:
        origin: model and scheduler; the method is refused on any other.
        steps: steps of each calibration request.
        full_steps: indices of the full steps, from 0.
        method: the method; its schedule becomes these full steps.
        date: the day of the calibration, as 2026-11-26.
        judged: number of samples, and PSNR to full compute of this plan and of the plan that needs no calibration.
        name: of a shipped preset, or its file.

    Raises:
        ValueError: the full steps are no plan for `steps` steps, or the method has finer steps.
    """

    origin: Origin
    steps: int
    full_steps: tuple[int, ...]
    method: Method
    date: str = ""
    judged: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        check_whole("the steps of a preset", self.steps, 1)
        plan = Plan(self.full_steps, self.steps)
        if self.method.finer != 1:
            raise ValueError("a preset counts the pipeline's own steps: pass finer= to relcache.enable instead")
        name = f"preset:name={self.name}" if self.name else "preset"
        own = replace(self.method, schedule=plan, name=name, made_for=self.origin)
        object.__setattr__(self, "full_steps", plan.full_steps)
        object.__setattr__(self, "method", own)

    def save(self, path: str | Path) -> None:
        """Write the preset as JSON, whole or not at all.

        Raises:
            ValueError: the forecaster or corrector is not one of relcache's, so a file cannot name it.
            OSError: the file cannot be written.
        """
        write_whole(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Preset:
        """Read a preset from a file.

        Raises:
            ValueError: the file is missing or is no preset; the message names it.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is no preset: {error}") from error

    @classmethod
    def named(cls, name: str) -> Preset:
        """Return the shipped preset of this name, or read the file; raise ValueError if there is neither."""
        known = shipped()
        if name in known:
            return replace(known[name], name=name)
        if not Path(str(name)).is_file():
            ours = f"shipped are {', '.join(known)}" if known else "the package relcache-models has the shipped ones"
            raise ValueError(
                f"there is no preset {name!r}, neither shipped nor as a file: {did_you_mean(str(name), known)}{ours}"
            )
        return replace(cls.load(name), name=str(name))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        corrector = self.method.corrector
        return {
            "version": VERSION,
            "models": {name: _component(model) for name, model in self.origin.models.items()},
            "scheduler": _component(self.origin.scheduler),
            "steps": self.steps,
            "full_steps": list(self.full_steps),
            "forecaster": _part(self.method.forecaster, FORECASTERS),
            "corrector": None if corrector is None else _part(corrector, CORRECTORS),
            **{name: getattr(self.method, name) for name in OPTIONS},
            "date": self.date,
            "judged": dict(self.judged),
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Preset:
        """Make a preset from a table of `to_dict`; raise ValueError if an entry is missing or wrong."""
        version = _field({"file": table}, "file", Mapping).get("version")
        if version != VERSION:
            raise ValueError(f"it has version {version!r}, and this relcache reads version {VERSION}")
        models = _field(table, "models", Mapping)
        if not models:
            raise ValueError("it names no model")
        origin = Origin({name: _component_from(models, name) for name in models}, _component_from(table, "scheduler"))
        judged = _field(table, "judged", Mapping)
        for name in ("plan", "growing", "samples"):
            if name in judged:
                _field(judged, name, (int, float))
        steps = Plan(_field(table, "full_steps", list)).full_steps
        corrector = None if table.get("corrector") is None else _part_from(table, "corrector", CORRECTORS)
        options = {name: table[name] for name in OPTIONS if name in table}
        method = Method(_part_from(table, "forecaster", FORECASTERS), Plan(steps), corrector=corrector, **options)
        return cls(origin, _field(table, "steps", int), steps, method, _field(table, "date", str), judged)


def shipped() -> dict[str, Preset]:
    """Return the presets of the shipped models, by name; none where the package relcache-models is not installed."""
    try:
        from relcache_models import presets
    except ModuleNotFoundError as error:
        if error.name != "relcache_models":
            raise
        return {}
    return {name: Preset.load(path) for name, path in presets().items()}


def _field(table: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return an entry of a table; raise ValueError if it is missing or not of type `kind`."""
    if name not in table:
        raise ValueError(f"it has no {name!r}")
    if not isinstance(table[name], kind):
        raise ValueError(f"its {name!r} has the wrong type: {table[name]!r:.60}")
    return table[name]


def _component(component: Component) -> dict[str, Any]:
    return {"class": component.class_name, "config": dict(component.config)}


def _component_from(parent: Mapping[str, Any], name: str) -> Component:
    table = _field(parent, name, Mapping)
    return Component(_field(table, "class", str), _field(table, "config", Mapping))


def _part(part: Any, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a forecaster's or corrector's class name and options."""
    name = type(part).__name__
    if type(part) is not classes.get(name):
        raise ValueError(f"a preset holds forecasters and correctors of relcache; {part!r} is neither")
    return {"name": name, **asdict(part)}


def _part_from(table: Mapping[str, Any], entry: str, classes: Mapping[str, Any]) -> Any:
    """Return the forecaster or corrector that a table describes."""
    options = dict(_field(table, entry, Mapping))
    name = _field(options, "name", str)
    if name not in classes:
        raise ValueError(f"this relcache has no {name!r}; it has {', '.join(classes)}")
    del options["name"]
    return classes[name](**options)
