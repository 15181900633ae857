"""Where in the model are the modules? One family per file."""

from relcache.models.base import ModelSpec, Unit, spec_for
from relcache.models.dit import DIT

SPECS: tuple[ModelSpec, ...] = (DIT,)

__all__ = ["SPECS", "ModelSpec", "Unit", "spec_for"]
