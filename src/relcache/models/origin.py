"""The model and scheduler of a preset, described by their configs, and the check that others are the same."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Component:
    """A model or scheduler: the name of its class, and its config as JSON.

    Entries that begin with `_` or have the default of the class are left out, because another version of diffusers may
    have more options.
    """

    class_name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, component: Any) -> Component:
        """Return the description of a component of a pipeline."""
        config = getattr(component, "config", None)
        config = dict(config) if isinstance(config, Mapping) else {}
        parameters = inspect.signature(type(component).__init__).parameters
        defaults = {name: _as_json(parameter.default) for name, parameter in parameters.items() if name in config}
        own = {name: _as_json(value) for name, value in config.items() if not str(name).startswith("_")}
        return cls(
            type(component).__name__,
            {name: value for name, value in own.items() if name not in defaults or value != defaults[name]},
        )

    def differs(self, other: Component) -> str | None:
        """Return how `other` differs, in words; None if it is the same."""
        if self.class_name != other.class_name:
            return f"{self.class_name}, not {other.class_name}"
        names = [name for name in {**self.config, **other.config} if self._shown(name) != other._shown(name)]
        if not names:
            return None
        options = ", ".join(f"{name}={self._shown(name):.60}, not {other._shown(name):.60}" for name in names)
        return f"{self.class_name} with {options}"

    def _shown(self, name: str) -> str:
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
        """Return the origin of a pipeline, or of a loop written by hand."""
        return cls({name: Component.of(model) for name, model in models.items()}, Component.of(scheduler))

    def check(self, models: Mapping[str, Any], scheduler: Any) -> None:
        """Check that these are the transformers and the scheduler of the preset.

        Raises:
            ValueError: another model or scheduler, or no scheduler is known.
        """
        if scheduler is None:
            raise ValueError(f"the preset is for {self.scheduler.class_name}: pass the scheduler= that the loop steps")
        if set(self.models) != set(models):
            own, other = (" and ".join(sorted(names)) for names in (self.models, models))
            raise ValueError(f"the preset is for a pipeline with {own}; this one has {other}")
        for name, model in models.items():
            _check(self.models[name], model)
        self.check_scheduler(scheduler)

    def check_scheduler(self, scheduler: Any) -> None:
        """Raise ValueError unless `scheduler` is the preset's."""
        _check(self.scheduler, scheduler)


def _check(known: Component, component: Any) -> None:
    difference = known.differs(Component.of(component))
    if difference is not None:
        raise ValueError(f"the preset is for {difference}: make one for these with relcache calibrate")
