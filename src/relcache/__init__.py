"""relcache: make diffusion transformers sample faster by Relational Feature Caching.

The names are imported where they are first used, so that `import relcache` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relcache.api import Handle, disable, enable
    from relcache.calibration import calibrate
    from relcache.correctors import Corrector, Replay
    from relcache.forecasters import Forecaster, Linear, Newton, Relational, Reuse, Taylor
    from relcache.inspection import Inspection, inspect
    from relcache.method import Method
    from relcache.methods import (
        FORA,
        RCS,
        RFC,
        RFE,
        TaylorSeer,
        auto,
        method_from_config,
        method_from_text,
        method_to_text,
    )
    from relcache.models import ModelSpec, Part, Size, joint, parallel
    from relcache.presets import Preset
    from relcache.schedules import Always, ErrorBudget, Growing, Interval, Plan, Schedule
    from relcache.session.report import Report
    from relcache.shapes.flops import count_flops

__version__ = "0.1.0"

_NAMES = {
    "api": ("Handle", "disable", "enable"),
    "calibration": ("calibrate",),
    "correctors": ("CORRECTORS", "Corrector"),
    "forecasters": ("FORECASTERS", "Forecaster"),
    "inspection": ("Inspection", "inspect"),
    "method": ("Method",),
    "methods": (
        "FORA", "RCS", "RFC", "RFE", "TaylorSeer", "auto", "method_from_config", "method_from_text", "method_to_text",
    ),
    "models": ("ModelSpec", "Part", "Size", "joint", "parallel"),
    "presets": ("Preset",),
    "schedules": ("SCHEDULES", "Schedule"),
    "session.report": ("Report",),
    "shapes.flops": ("count_flops",),
}  # fmt: skip
_PARTS = {"correctors": "CORRECTORS", "forecasters": "FORECASTERS", "schedules": "SCHEDULES"}  # of all files there
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "FORA",
    "RCS",
    "RFC",
    "RFE",
    "Always",
    "Corrector",
    "ErrorBudget",
    "Forecaster",
    "Growing",
    "Handle",
    "Inspection",
    "Interval",
    "Linear",
    "Method",
    "ModelSpec",
    "Newton",
    "Part",
    "Plan",
    "Preset",
    "Relational",
    "Replay",
    "Report",
    "Reuse",
    "Schedule",
    "Size",
    "Taylor",
    "TaylorSeer",
    "auto",
    "calibrate",
    "count_flops",
    "disable",
    "enable",
    "inspect",
    "joint",
    "method_from_config",
    "method_from_text",
    "method_to_text",
    "parallel",
]


if not TYPE_CHECKING:  # type checkers know the names above, and no other

    def __getattr__(name: str) -> Any:
        """Import one of the names above, a module, or a forecaster, schedule or corrector of any file in its folder."""
        if name in _MODULES:
            value = getattr(import_module(f"relcache.{_MODULES[name]}"), name)
        elif name.isidentifier() and not name.startswith("_") and find_spec(f"relcache.{name}") is not None:
            value = import_module(f"relcache.{name}")
        elif name.startswith("_") or (value := _parts().get(name)) is None:
            raise AttributeError(f"module 'relcache' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_parts()})


def _parts() -> dict[str, Any]:
    """Return the forecasters, schedules and correctors by name."""
    found: dict[str, Any] = {}
    for folder, names in _PARTS.items():
        found |= getattr(import_module(f"relcache.{folder}"), names)
    return found
