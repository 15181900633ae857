"""DBCache of cache-dit, alone and with its TaylorSeer calibrator.

With one block in front and none behind (F1B0), the fewest that it can compute at a cached step. It decides by the
change of that block's residual, or takes the full steps that it is told. Where its adapter of a family has several
lists of blocks, each list has a first block and a decision of its own.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from relcache.bench.speed.peers.base import PHASE, WARMUP, Peer, as_it_was, lists_of_blocks
from relcache.models import ModelSpec
from relcache.schedules import Interval


def dbcache() -> Peer:
    """DBCache by its threshold; the cached blocks' residual is reused."""
    return _peer("cache-dit DBCache", order=None)


def dbcache_taylorseer(order: int) -> Peer:
    """DBCache by its threshold; the cached blocks' residual is extrapolated by its TaylorSeer calibrator."""
    return _peer(f"cache-dit DBCache + TaylorSeer, m={order}", order)


def dbcache_at_fixed_steps(order: int) -> Peer:
    """DBCache's mask of steps with its TaylorSeer calibrator: no signal, full steps at an interval."""
    return _peer(f"cache-dit TaylorSeer, fixed steps, m={order}", order, fixed=True)


def _peer(name: str, order: int | None, fixed: bool = False) -> Peer:
    @contextmanager
    def enable(model: nn.Module, spec: ModelSpec, budget: float, steps: int) -> Iterator[None]:
        package = _package()
        options: dict[str, Any] = {"residual_diff_threshold": budget}
        if fixed:
            schedule = Interval(int(budget), WARMUP, PHASE)
            mask = [int(schedule.wants_full(None, step, None)) for step in range(steps)]
            options = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
        config = package.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=WARMUP, num_inference_steps=steps, **options
        )
        calibrator = None if order is None else package.TaylorSeerCalibratorConfig(taylorseer_order=order)
        with _silence(), as_it_was(model):
            package.enable_cache(model, cache_config=config, calibrator_config=calibrator)
            try:
                yield
            finally:
                package.disable_cache(model)

    return Peer(name, enable, has_threshold=not fixed, phase=PHASE if fixed else None, warmup=WARMUP, check=_check)


def _package() -> Any:
    """The package cache-dit, which is asked for late: nothing else needs it.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("cache_dit")
    except ImportError as error:
        raise ValueError(f'--peers needs cache-dit ({error}): pip install "relcache[peers]"') from error


@contextmanager
def _silence() -> Iterator[None]:
    """Without the lines that cache-dit logs whenever it is enabled and disabled: its loggers share their handlers."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("CACHE_DIT").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)


def _check(model: nn.Module, spec: ModelSpec) -> None:
    package = _package()
    if not package.BlockAdapterRegister.is_supported(model):
        raise ValueError(f"cache-dit has no adapter for {type(model).__name__}: leave out --peers")
    *_, (name, last) = lists_of_blocks(model, spec).items()
    if len(last) < 2:
        raise ValueError(f"DBCache skips the blocks after the first: it needs 2 or more of {name}, see --blocks")
