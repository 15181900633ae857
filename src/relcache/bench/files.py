"""Results on disk: written whole or not at all, so that an interrupted run loses nothing that it had."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: the file is damaged; the message says to delete it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the same command makes it again") from error


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `arrays` as a compressed .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file.

    Raises:
        ValueError: the file is damaged; the message says to delete it.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the same command makes it again") from error


def markdown_table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """`rows` as a Markdown table. `columns` maps keys to format specifications; None becomes a dash."""
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        lines.append(["–" if row.get(key) is None else format(row[key], form) for key, form in columns.items()])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
