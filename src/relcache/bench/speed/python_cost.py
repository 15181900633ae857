"""Measure the Python part of a cached step: the calls within relcache, and their time with kernel launches.

The models have all their blocks but hardly any channels and tokens, so that kernels take no time beyond their launch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from relcache.api import enable
from relcache.bench.speed.contestants import at_interval
from relcache.bench.speed.subjects import Subject, calls_of, model_of
from relcache.method import Method
from relcache.models.coarse import coarsened
from relcache.schedules import ErrorBudget, Interval

PACKAGE = str(Path(__file__).parents[2])
TIMED = 50  # steps; the fastest counts, as other load can only slow a step down


@torch.no_grad()
def python_cost(subject: Subject, method: Method) -> dict[str, float]:
    """Measure a cached step of the subject's tiny model: units, calls of relcache's functions, microseconds.

    The microseconds are the excess over a step with units that return stored outputs at once.
    """
    tiny = subject._replace(config=subject.config | subject.tiny, size=replace(subject.size, **subject.tiny_size))
    model, spec = model_of(tiny, torch.float32, "cpu")
    units = coarsened(spec, model, method.granularity).units(model)
    history = method.order + 1
    if not isinstance(method.schedule, ErrorBudget):
        method = replace(method, schedule=Interval(2))
    calls = calls_of(model, spec, tiny.size, history + 1 + TIMED)
    with enable(model, at_interval(method, len(calls), len(calls), history)):
        for call in calls[:history]:
            model(**call)
        counted = calls_within_relcache(lambda: model(**calls[history]))
        ours = _fastest(model, calls[history + 1 :])
    with ExitStack() as stack:
        _hollow(model, [module for unit in units for module in unit.modules.values()], calls[0], stack)
        hollow = _fastest(model, calls[:TIMED])
    return {"units": len(units), "calls": counted, "microseconds": 1e6 * max(0.0, ours - hollow)}


def calls_within_relcache(run: Callable[[], Any]) -> int:
    """Count the calls of functions from relcache's files that `run` makes."""
    counted = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(before)
    return counted


def _fastest(model: nn.Module, calls: Sequence[dict[str, Any]]) -> float:
    seconds = []
    for call in calls:
        began = time.perf_counter()
        model(**call)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _hollow(model: nn.Module, modules: Sequence[nn.Module], call: dict[str, Any], stack: ExitStack) -> None:
    """Make modules return their outputs of this call at once, until the stack closes."""
    outputs: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[module] = output

    hooks = [module.register_forward_hook(keep) for module in modules]
    model(**call)
    for hook in hooks:
        hook.remove()
    for module, output in outputs.items():
        vars(module)["forward"] = lambda *args, output=output, **kwargs: output
        stack.callback(vars(module).pop, "forward")
