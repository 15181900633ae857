"""Which model and scheduler something was found for, and whether others are the same. Knows both by their config."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Component:
    """A model or scheduler: the name of its class, and its config as JSON.

    Without what begins with `_`, and without what is as the class has it by default: another version of diffusers may
    have more options.
    """

    class_name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, component: Any) -> Component:
        """That of a component of a pipeline, or of a transformer."""
        config = getattr(component, "config", None)
        given = dict(config) if isinstance(config, Mapping) else {}
        taken = inspect.signature(type(component).__init__).parameters
        usual = {name: parameter.default for name, parameter in taken.items()}
        own = {name: _as_json(value) for name, value in given.items() if not str(name).startswith("_")}
        told = {name: value for name, value in own.items() if name not in usual or value != _as_json(usual[name])}
        return cls(type(component).__name__, told)

    def differs(self, other: Component) -> str | None:
        """How `other` differs, as words; None if it is the same."""
        if self.class_name != other.class_name:
            return f"{self.class_name}, not {other.class_name}"
        names = [name for name in {**self.config, **other.config} if self._told(name) != other._told(name)]
        if not names:
            return None
        told = ", ".join(f"{name}={self._told(name):.60}, not {other._told(name):.60}" for name in names)
        return f"{self.class_name} with {told}"

    def _told(self, name: str) -> str:
        return repr(self.config[name]) if name in self.config else "its default"


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


@dataclass(frozen=True)
class Origin:
    """The transformers, by their names in the pipeline, and the scheduler."""

    models: Mapping[str, Component]
    scheduler: Component

    @classmethod
    def of(cls, models: Mapping[str, Any], scheduler: Any) -> Origin:
        """Those of a pipeline, or of a loop that is written by hand."""
        return cls({name: Component.of(model) for name, model in models.items()}, Component.of(scheduler))

    def check(self, models: Mapping[str, Any], scheduler: Any) -> None:
        """See that a preset that was found for this may be used on these.

        Raises:
            ValueError: for another model or scheduler, or no scheduler is known.
        """
        if scheduler is None:
            raise ValueError(f"the preset is for {self.scheduler.class_name}: pass the scheduler= that the loop steps")
        if set(self.models) != set(models):
            mine, its = (" and ".join(sorted(names)) for names in (self.models, models))
            raise ValueError(f"the preset is for a pipeline with {mine}; this one has {its}")
        for name, model in models.items():
            _check(self.models[name], model)
        self.check_scheduler(scheduler)

    def check_scheduler(self, scheduler: Any) -> None:
        """See that it is the same scheduler.

        Raises:
            ValueError: it is another.
        """
        _check(self.scheduler, scheduler)


def _check(known: Component, component: Any) -> None:
    difference = known.differs(Component.of(component))
    if difference is not None:
        raise ValueError(f"the preset is for {difference}: find one for these by relcache calibrate")
