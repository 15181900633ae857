"""Reuse: a skipped unit returns its last output."""

from __future__ import annotations

from dataclasses import dataclass

from relcache.forecasters.base import LadderForecaster
from relcache.forecasters.expansion import Expansion


@dataclass(frozen=True)
class Reuse(LadderForecaster):
    """`O(t-k) = O(t)`. Source: FORA, arXiv 2407.01425."""

    @property
    def expansion(self) -> Expansion:
        return Expansion(0)
