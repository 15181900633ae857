"""A preset: the full steps that were found for one model and scheduler, and the method that they were found for.

Knows methods; of sessions and of how a plan is found nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from relcache import correctors, forecasters
from relcache.method import Method
from relcache.nearest import did_you_mean
from relcache.origin import Component, Origin
from relcache.schedules import Plan
from relcache.schedules.base import check_count
from relcache.writing import write_whole

VERSION = 1
SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Preset:
    """Full steps found by `relcache.calibrate`, and what they were found for.

    Attributes:
        origin: model and scheduler.
        steps: of the requests that it was found on.
        full_steps: the steps that are full, from 0.
        base: the method whose schedule they are; its own schedule does not count.
        date: when, as 2026-11-26.
        judged: what it was judged on: the number of samples, and decibels to full compute of this plan and of the one
            that needs no calibration.

    Raises:
        ValueError: full steps that are no plan, or that the requests do not have.
    """

    origin: Origin
    steps: int
    full_steps: tuple[int, ...]
    base: Method
    date: str = ""
    judged: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("the steps of a preset", self.steps, 1)
        Plan(self.full_steps, self.steps)

    @property
    def method(self) -> Method:
        """The method on these full steps. Elsewhere than on its model and scheduler it is refused."""
        base = self.base
        return Method(
            base.forecaster,
            Plan(self.full_steps, self.steps),
            "preset",
            base.granularity,
            corrector=base.corrector,
            made_for=self.origin,
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all.

        Raises:
            ValueError: a forecaster or corrector that is not one of relcache's: a file could not name it.
            OSError: it cannot be written.
        """
        write_whole(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Preset:
        """Read one from a file.

        Raises:
            ValueError: no such file, or not a preset; the message names the file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except KeyError as error:
            raise ValueError(f"{path} is no preset: it has no {error}") from error
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no preset that can be read: {error}") from error

    @classmethod
    def named(cls, name: str) -> Preset:
        """The shipped one of this name, or the one in the file of this path.

        Raises:
            ValueError: there is neither, or the file is no preset.
        """
        if name in shipped():
            return shipped()[name]
        if not Path(str(name)).is_file():
            raise ValueError(
                f"there is no preset {name!r}, neither shipped nor as a file: {did_you_mean(str(name), shipped())}"
                f"shipped are {', '.join(shipped())}"
            )
        return cls.load(name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "version": VERSION,
            "models": {name: _component(model) for name, model in self.origin.models.items()},
            "scheduler": _component(self.origin.scheduler),
            "steps": self.steps,
            "full_steps": list(self.full_steps),
            "forecaster": _part(self.base.forecaster, forecasters),
            "corrector": None if self.base.corrector is None else _part(self.base.corrector, correctors),
            "granularity": self.base.granularity,
            "date": self.date,
            "judged": dict(self.judged),
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Preset:
        """From what `to_dict` returns.

        Raises:
            ValueError: another version, or a part that relcache does not have.
        """
        if table["version"] != VERSION:
            raise ValueError(f"it has version {table['version']!r}, and this relcache reads version {VERSION}")
        corrector = table["corrector"]
        steps = Plan(table["full_steps"]).full_steps
        base = Method(
            _made(table["forecaster"], forecasters),
            Plan(steps),
            granularity=table["granularity"],
            corrector=None if corrector is None else _made(corrector, correctors),
        )
        models = {name: _component_from(model) for name, model in table["models"].items()}
        origin = Origin(models, _component_from(table["scheduler"]))
        return cls(origin, table["steps"], steps, base, str(table.get("date", "")), table.get("judged", {}))


def shipped() -> dict[str, Preset]:
    """The presets that relcache ships, by name."""
    return {path.stem: Preset.load(path) for path in sorted(SHIPPED.glob("*.json"))}


def _component(component: Component) -> dict[str, Any]:
    return {"class": component.class_name, "config": dict(component.config)}


def _component_from(table: Mapping[str, Any]) -> Component:
    return Component(table["class"], table["config"])


def _part(part: Any, among: Any) -> dict[str, Any]:
    """A forecaster or corrector by the name of its class and its options."""
    name = type(part).__name__
    if name not in among.__all__ or type(part) is not getattr(among, name):
        raise ValueError(f"a preset holds forecasters and correctors of relcache, and {part!r} is none")
    return {"name": name, **asdict(part)}


def _made(table: Mapping[str, Any], among: Any) -> Any:
    options = dict(table)
    name = options.pop("name")
    if name not in among.__all__:
        raise ValueError(f"this relcache has no {name!r} among {', '.join(among.__all__)}")
    return getattr(among, name)(**options)
