"""Which full steps suit a model, a scheduler and a budget best? Measured errors, their amplification, and trials."""

from relcache.calibration.calibrate import calibrate, find_plan

__all__ = ["calibrate", "find_plan"]
