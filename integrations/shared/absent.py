"""Replace packages that have no build for a CPU by empty modules, to try an engine's own package without a GPU."""

from __future__ import annotations

import enum
import importlib.machinery
import sys
from types import ModuleType
from typing import Any


class Empty(ModuleType):
    """A module that has every name; each is an empty class."""

    __path__: list[str] = []  # noqa: RUF012 -- a package's
    __version__ = "0.28.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return enum.Enum(name, "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


class Finder:
    """Finds the packages of these names, and all modules in them."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of an empty module; None for other packages."""
        is_own = name.partition(".")[0] in self._names
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_own else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        """Return an empty module."""
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is empty."""


def replace(*names: str) -> None:
    """Let the packages of these names be empty from now on."""
    sys.meta_path.insert(0, Finder(names))  # type: ignore[arg-type]
