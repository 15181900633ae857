"""Correctors of the gaps between full steps. Each file defines one, and `CORRECTORS` finds it."""

from relcache.correctors.base import Corrector, Gap, Known, Link
from relcache.correctors.replay import Replay
from relcache.discovery import classes_in

CORRECTORS = classes_in(__name__, __path__, Corrector)  # type: ignore[type-abstract]

__all__ = ["CORRECTORS", "Corrector", "Gap", "Known", "Link", "Replay"]
