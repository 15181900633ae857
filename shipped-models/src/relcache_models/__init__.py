"""The small trained models that relcache ships: folders of weights, and one function that finds them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["folder", "names"]


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(entry.name for entry in Path(str(files(__package__))).iterdir() if _is_model(entry))


def folder(name: str) -> Path:
    """Folder of the shipped model `name`.

    Raises:
        ValueError: no model of that name is shipped.
    """
    path = Path(str(files(__package__))) / name
    if not _is_model(path):
        raise ValueError(f"no shipped model is called {name!r}; there are: {', '.join(names())}")
    return path


def _is_model(path: Path) -> bool:
    if path.name.startswith("."):  # one that is being written
        return False
    return (path / "model_index.json").is_file() or (path / "model.safetensors").is_file()
