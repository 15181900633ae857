"""Plans that were found for a model, scheduler, number of steps and budget: saved, loaded, listed, shipped."""

from relcache.presets.preset import Preset, shipped

__all__ = ["Preset", "shipped"]
