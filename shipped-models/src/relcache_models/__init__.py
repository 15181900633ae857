"""The small trained models that relcache ships, as folders of weights, and calibrated plans for them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["folder", "names", "presets"]


def names() -> list[str]:
    """Return the names of the shipped models."""
    return sorted(entry.name for entry in Path(str(files(__package__))).iterdir() if _is_model(entry))


def folder(name: str) -> Path:
    """Return the folder of the shipped model `name`.

    Raises:
        ValueError: no shipped model has that name.
    """
    path = Path(str(files(__package__))) / name
    if not _is_model(path):
        raise ValueError(f"no shipped model is called {name!r}; there are: {', '.join(names())}")
    return path


def presets() -> dict[str, Path]:
    """Return the files of the calibrated plans, presets of relcache, by name."""
    return {path.stem: path for path in sorted(Path(str(files(__package__))).glob("presets/*.json"))}


def _is_model(path: Path) -> bool:
    if path.name.startswith("."):  # still being written
        return False
    return (path / "model_index.json").is_file() or (path / "model.safetensors").is_file()
