"""Where in the model are the modules? One family per file; a file added here is found by itself."""

import importlib
import pkgutil

from relcache.models.base import ModelSpec, Part, Size, Unit, describe, joint, parallel, spec_for, streams
from relcache.models.unsupported import UNSUPPORTED


def _collect() -> tuple[ModelSpec, ...]:
    specs: dict[str, ModelSpec] = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        specs |= {value.class_name: value for value in vars(module).values() if isinstance(value, ModelSpec)}
    return tuple(specs.values())


SPECS = _collect()

__all__ = [
    "SPECS",
    "UNSUPPORTED",
    "ModelSpec",
    "Part",
    "Size",
    "Unit",
    "describe",
    "joint",
    "parallel",
    "spec_for",
    "streams",
]
