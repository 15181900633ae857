"""When is a step computed in full? One schedule per file."""

from relcache.schedules.always import Always
from relcache.schedules.base import Schedule
from relcache.schedules.error_budget import ErrorBudget
from relcache.schedules.growing import Growing
from relcache.schedules.interval import Interval
from relcache.schedules.plan import Plan

__all__ = ["Always", "ErrorBudget", "Growing", "Interval", "Plan", "Schedule"]
