"""Find the full steps that suit a model, a scheduler and a budget best."""

from relcache.calibration.calibrate import calibrate, find_plan

__all__ = ["calibrate", "find_plan"]
