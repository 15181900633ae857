"""Correctors recompute a gap once its end is known; each file defines one and is found by itself."""

from relcache.correctors.base import Corrector, Gap, Known, Link
from relcache.correctors.replay import Replay
from relcache.discovery import classes_in

CORRECTORS = classes_in(__name__, __path__, Corrector)  # type: ignore[type-abstract]

__all__ = ["CORRECTORS", "Corrector", "Gap", "Known", "Link", "Replay"]
