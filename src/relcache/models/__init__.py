"""The modules that are cached in a model. Each file of `families` holds a family; a new file needs no registration."""

import importlib
import pkgutil

from relcache.models import families
from relcache.models.inputs import Size
from relcache.models.spec import ModelSpec, Part, Unit, describe, joint, parallel, spec_for, streams
from relcache.models.unsupported import UNSUPPORTED


def _collect() -> tuple[ModelSpec, ...]:
    specs: dict[str, ModelSpec] = {}
    for entry in sorted(pkgutil.iter_modules(families.__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{families.__name__}.{entry.name}")
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
