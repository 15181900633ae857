"""Which model and scheduler something was found for, and whether others are the same. Knows both by their config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Component:
    """A model or scheduler: the name of its class, and its config as JSON, without what begins with `_`."""

    class_name: str
    config: Mapping[str, Any]

    @classmethod
    def of(cls, component: Any) -> Component:
        """That of a component of a pipeline, or of a transformer."""
        config = getattr(component, "config", None) or {}
        named = {key: value for key, value in dict(config).items() if not str(key).startswith("_")}
        return cls(type(component).__name__, json.loads(json.dumps(named, default=str, sort_keys=True)))

    def differs(self, other: Component) -> str | None:
        """How `other` differs, as words; None if it is the same."""
        if self.class_name != other.class_name:
            return f"{self.class_name}, not {other.class_name}"
        both = [name for name in self.config if name in other.config]  # other versions may have more
        names = [name for name in both if self.config[name] != other.config[name]]
        if not names:
            return None
        told = ", ".join(f"{name}={self.config[name]!r:.60}, not {other.config[name]!r:.60}" for name in names)
        return f"{self.class_name} with {told}"


@dataclass(frozen=True)
class Origin:
    """The transformers, by their names in the pipeline, and the scheduler."""

    models: Mapping[str, Component]
    scheduler: Component

    @classmethod
    def of(cls, models: Mapping[str, Any], scheduler: Any) -> Origin:
        """Those of a pipeline, or of a loop that is written by hand."""
        return cls({name: Component.of(model) for name, model in models.items()}, Component.of(scheduler))

    def check(self, what: str, models: Mapping[str, Any], scheduler: Any) -> None:
        """See that `what` was found for these.

        Raises:
            ValueError: for another model or scheduler, or no scheduler is known.
        """
        if scheduler is None:
            raise ValueError(f"{what} is for {self.scheduler.class_name}: pass the scheduler= that the loop steps")
        other = Origin.of(models, scheduler)
        if set(self.models) != set(other.models):
            mine, its = (" and ".join(sorted(each.models)) for each in (self, other))
            raise ValueError(f"{what} is for a pipeline with {mine}; this one has {its}")
        pairs = [(self.models[name], other.models[name]) for name in self.models]
        for mine_part, its_part in (*pairs, (self.scheduler, other.scheduler)):
            difference = mine_part.differs(its_part)
            if difference is not None:
                raise ValueError(f"{what} is for {difference}: find one for these by relcache calibrate")
