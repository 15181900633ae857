"""relcache: make diffusion transformers sample faster by Relational Feature Caching."""

from relcache.api import Handle, disable, enable
from relcache.calibration import calibrate
from relcache.correctors import CORRECTORS, Corrector, Replay
from relcache.forecasters import FORECASTERS, Forecaster, Linear, Newton, Relational, Reuse, Taylor
from relcache.inspection import Inspection, inspect
from relcache.method import Method
from relcache.methods import FORA, RCS, RFC, RFE, TaylorSeer, auto, method_from_config, method_from_text, method_to_text
from relcache.models import ModelSpec, Part, Size, joint, parallel
from relcache.presets import Preset
from relcache.schedules import SCHEDULES, Always, ErrorBudget, Growing, Interval, Plan, Schedule
from relcache.session.report import Report
from relcache.shapes.flops import count_flops

__version__ = "0.1.0"

__all__ = [
    "FORA",
    "RCS",
    "RFC",
    "RFE",
    "Always",
    "Corrector",
    "ErrorBudget",
    "Forecaster",
    "Growing",
    "Handle",
    "Inspection",
    "Interval",
    "Linear",
    "Method",
    "ModelSpec",
    "Newton",
    "Part",
    "Plan",
    "Preset",
    "Relational",
    "Replay",
    "Report",
    "Reuse",
    "Schedule",
    "Size",
    "Taylor",
    "TaylorSeer",
    "auto",
    "calibrate",
    "count_flops",
    "disable",
    "enable",
    "inspect",
    "joint",
    "method_from_config",
    "method_from_text",
    "method_to_text",
    "parallel",
]

_PARTS = FORECASTERS | SCHEDULES | CORRECTORS  # of all files in the three folders; type checkers know those named above
globals().update(_PARTS)
__all__ += sorted(_PARTS.keys() - set(__all__))
