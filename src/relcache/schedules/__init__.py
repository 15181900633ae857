"""Schedules of full steps. Each file defines one, and `SCHEDULES` finds it."""

from relcache.discovery import classes_in
from relcache.schedules.always import Always
from relcache.schedules.base import Schedule
from relcache.schedules.error_budget import ErrorBudget
from relcache.schedules.growing import Growing
from relcache.schedules.interval import Interval
from relcache.schedules.plan import Plan

SCHEDULES = classes_in(__name__, __path__, Schedule)  # type: ignore[type-abstract]

__all__ = ["SCHEDULES", "Always", "ErrorBudget", "Growing", "Interval", "Plan", "Schedule"]
