"""What does a skipped module return? One forecaster per file."""

from relcache.forecasters.base import Forecaster
from relcache.forecasters.linear import Linear
from relcache.forecasters.newton import Newton
from relcache.forecasters.relational import Relational
from relcache.forecasters.reuse import Reuse
from relcache.forecasters.taylor import Taylor

__all__ = ["Forecaster", "Linear", "Newton", "Relational", "Reuse", "Taylor"]
