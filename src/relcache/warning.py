"""Warnings that point at the user's line. Imports nothing else of relcache."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

LIBRARIES = ("relcache", "torch", "diffusers", "diffusers_modules", "accelerate", "peft", "transformers", "contextlib")


def warn(text: str) -> None:
    """Warn at the innermost line that belongs to no library: the user's call of `enable` or of a pipeline."""
    level = 2  # the caller's line
    outer: FrameType | None = sys._getframe(1)
    while outer is not None and str(outer.f_globals.get("__name__")).partition(".")[0] in LIBRARIES:
        outer, level = outer.f_back, level + 1
    warnings.warn(text, stacklevel=level if outer is not None else 2)
