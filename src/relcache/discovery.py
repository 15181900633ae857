"""Find the classes that a folder defines: a new file needs no entry in a list."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import TypeVar, get_origin

Part = TypeVar("Part")


def classes_in(package: str, path: Iterable[str], base: type[Part]) -> dict[str, type[Part]]:
    """Return the concrete subclasses of `base` that the modules of a package define, by name."""
    return {
        name: value
        for module in (import_module(f"{package}.{file.name}") for file in pkgutil.iter_modules(path))
        for name, value in vars(module).items()
        if inspect.isclass(value) and get_origin(value) is None  # Python 3.10 takes list[int] for a class
        if issubclass(value, base) and value.__module__ == module.__name__
        if not inspect.isabstract(value) and not name.startswith("_")
    }
