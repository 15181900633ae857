"""What a calibration has measured, kept in a file so that it can be interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relcache.writing import write_whole


class Progress:
    """What has been measured, in a file if there is one."""

    def __init__(self, path: str | Path | None, key: Any):
        self.path, self.key = None if path is None else Path(path), key
        self.parts: dict[str, Any] = {}
        self.trials: dict[str, float] = {}
        if self.path is None or not self.path.is_file():
            return
        try:
            table = json.loads(self.path.read_text(encoding="utf-8"))
            self.parts, self.trials = dict(table["parts"]), dict(table["trials"])
            same = table["key"] == key
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}): delete it to begin anew") from error
        if not same:
            raise ValueError(f"{self.path} is of another model, method, budget or request: delete it to begin anew")

    def write(self) -> None:
        """Whole or not at all."""
        if self.path is None:
            return
        table = {"key": self.key, "parts": self.parts, "trials": self.trials}
        write_whole(self.path, json.dumps(table).encode())
