"""How is a gap made good once its end is known? One corrector per file."""

from relcache.correctors.base import Corrector, Gap, Known, Link
from relcache.correctors.replay import Replay

__all__ = ["Corrector", "Gap", "Known", "Link", "Replay"]
