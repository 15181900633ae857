"""Forecasters of the outputs of skipped units. Each file defines one, and `FORECASTERS` finds it."""

from relcache.discovery import classes_in
from relcache.forecasters.base import Forecaster
from relcache.forecasters.linear import Linear
from relcache.forecasters.newton import Newton
from relcache.forecasters.relational import Relational
from relcache.forecasters.reuse import Reuse
from relcache.forecasters.taylor import Taylor

FORECASTERS = classes_in(__name__, __path__, Forecaster)  # type: ignore[type-abstract]

__all__ = ["FORECASTERS", "Forecaster", "Linear", "Newton", "Relational", "Reuse", "Taylor"]
