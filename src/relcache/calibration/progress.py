"""The measurements of a calibration, kept in a file so that it can resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relcache.presets.writing import write_whole

TOLERANCE = 1e-3  # between two signatures of the same pictures


class Progress:
    """The measurements so far, written to the file `path` unless that is None.

    Attributes:
        key: model, scheduler, method and budget.
        signature: a few numbers of full compute's pictures, which identify weights, calls and seeds; None until known.
        steps: steps of a request; None until known.
        parts: measured errors and gains, by name.
        trials: PSNR in dB by plan.

    Raises:
        ValueError: the file belongs to another calibration, or cannot be read or written.
    """

    def __init__(self, path: str | Path | None, key: Any):
        self.path, self.key = None if path is None else Path(path), json.loads(json.dumps(key))
        self.signature: list[float] | None = None
        self.steps: int | None = None
        self.parts: dict[str, Any] = {}
        self.trials: dict[str, float] = {}
        if self.path is None:
            return
        if self.path.is_dir():
            raise ValueError(f"progress cannot be kept in {self.path}: it is a folder, and a file is needed")
        if self.path.is_file():
            try:
                table = json.loads(self.path.read_text(encoding="utf-8"))
                self.signature, self.steps = table["signature"], table["steps"]
                self.parts, self.trials = dict(table["parts"]), dict(table["trials"])
                same = table["key"] == self.key
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} cannot be read ({error}): delete it to begin anew") from error
            if not same:
                raise ValueError(f"{self.path} belongs to another model, method or budget: delete it to begin anew")
        try:
            self.write()
        except OSError as error:
            raise ValueError(f"progress cannot be kept in {self.path}: {error}") from error

    def begin(self, signature: list[float], steps: int) -> None:
        """Set signature and steps of full compute; raise ValueError if they differ from the file's."""
        if self.signature is not None:
            pairs = zip(self.signature, signature, strict=False)
            same = len(self.signature) == len(signature) and all(abs(a - b) <= TOLERANCE for a, b in pairs)
            if not same or self.steps != steps:
                raise ValueError(f"{self.path} belongs to other weights, calls or seeds: delete it to begin anew")
        self.signature, self.steps = signature, steps

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        table = {"key": self.key, "signature": self.signature, "steps": self.steps}
        write_whole(self.path, json.dumps({**table, "parts": self.parts, "trials": self.trials}).encode())
