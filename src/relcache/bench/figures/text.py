"""Draw users' texts on pictures if the installed fonts have every character, else a plain label."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font

BOXES = "last resort"  # a font of boxes
MATHEMATICAL = ("cm", "stix", "dejavu math")
TO_LEFT = ("R", "AL", "AN", "RLE", "RLO", "RLI")  # right-to-left scripts, which matplotlib cannot draw
SHAPED = ("Mc", "Cf")  # characters that join or reorder letters, which it cannot draw either


@cache
def _characters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


@cache
def _fonts() -> dict[str, str]:
    """Return the files of the installed upright text fonts of normal weight, by family."""
    found: dict[str, str] = {}
    for font in font_manager.fontManager.ttflist:
        plain = font.style == "normal" and str(font.weight) in ("400", "normal", "regular")
        if plain and not font.name.lower().startswith((BOXES, *MATHEMATICAL)):
            found.setdefault(font.name, font.fname)
    return found


@cache
def families(text: str) -> tuple[str, ...]:
    """Return font families that together have every character of `text`, the usual family first.

    Return none if no font has a character, or if letters must join, change their order or run to the left.
    """
    if any(unicodedata.bidirectional(c) in TO_LEFT or unicodedata.category(c) in SHAPED for c in text):
        return ()
    usual = font_manager.FontProperties(family=rcParams["font.family"]).get_name()
    missing = {ord(character) for character in text if not character.isspace()}
    chosen = [usual]
    missing -= _characters(font_manager.findfont(usual))
    for name, path in _fonts().items():
        if missing and missing & _characters(path):
            chosen.append(name)
            missing -= _characters(path)
    return () if missing else tuple(chosen)


def drawable(text: str, label: str) -> str:
    """Return `text` if it can be drawn, else the plain `label`."""
    text = " ".join(text.split())
    return text if text.isprintable() and families(text) else label


def folded(text: str, width: int, most: int) -> str:
    """Return `text` in at most `most` lines of `width`; a text that is cut ends in dots."""
    return textwrap.fill(text, width, max_lines=most, placeholder=" …")


def style(text: str) -> dict[str, Any]:
    """Return the options of matplotlib that draw `text` as it is: its fonts, and dollars as dollars."""
    return {"family": list(families(text.replace("\n", " "))) or None, "parse_math": False}


def labels(texts: Sequence[str], kind: str) -> list[str]:
    """Return `texts`, with a numbered label such as "prompt 3" for each that cannot be drawn."""
    return [drawable(text, f"{kind} {number}") for number, text in enumerate(texts, 1)]
