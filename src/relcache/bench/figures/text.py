"""Texts of users on pictures: drawn where an installed font has every sign, else a plain label in their place."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.ft2font import FT2Font

BOXES = "last resort"  # a font whose glyphs are boxes
MATHEMATICAL = ("cm", "stix", "dejavu math")
TO_LEFT = ("R", "AL", "AN", "RLE", "RLO", "RLI")  # of scripts that run to the left, which matplotlib does not
SHAPED = ("Mc", "Cf")  # signs by which letters join or change places, which it does not do either


@cache
def _signs(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


@cache
def _fonts() -> dict[str, str]:
    """Files of the installed text fonts by family, upright and of usual weight."""
    found: dict[str, str] = {}
    for font in font_manager.fontManager.ttflist:
        plain = font.style == "normal" and str(font.weight) in ("400", "normal", "regular")
        if plain and not font.name.lower().startswith((BOXES, *MATHEMATICAL)):
            found.setdefault(font.name, font.fname)
    return found


@cache
def families(text: str) -> tuple[str, ...]:
    """Font families that together have every sign of `text`, the usual one first; none where it cannot be drawn.

    That is where no font has a sign, or where letters must join, change places or run to the left.
    """
    if any(unicodedata.bidirectional(sign) in TO_LEFT or unicodedata.category(sign) in SHAPED for sign in text):
        return ()
    usual = font_manager.FontProperties(family=rcParams["font.family"]).get_name()
    missing = {ord(sign) for sign in text if not sign.isspace()}
    chosen = [usual]
    missing -= _signs(font_manager.findfont(usual))
    for name, path in _fonts().items():
        if missing and missing & _signs(path):
            chosen.append(name)
            missing -= _signs(path)
    return () if missing else tuple(chosen)


def drawable(text: str, label: str) -> str:
    """`text` where it can be drawn, else `label`, which is plain."""
    text = " ".join(text.split())
    return text if text.isprintable() and families(text) else label


def folded(text: str, width: int, most: int) -> str:
    """`text` in lines of `width`, of which the last ends in dots where it has more than `most`."""
    return textwrap.fill(text, width, max_lines=most, placeholder=" …")


def style(text: str) -> dict[str, Any]:
    """Options of matplotlib by which `text` is drawn as it is: the fonts that it needs, and dollars as dollars."""
    return {"family": list(families(text.replace("\n", " "))) or None, "parse_math": False}


def labels(texts: Sequence[str], kind: str) -> list[str]:
    """What can be drawn of `texts`, each of which has its number where it cannot: "prompt 3"."""
    return [drawable(text, f"{kind} {number}") for number, text in enumerate(texts, 1)]
