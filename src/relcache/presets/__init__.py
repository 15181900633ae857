"""Plans found for one model, scheduler, number of steps and budget, in files."""

from relcache.presets.preset import Preset, shipped

__all__ = ["Preset", "shipped"]
