"""DBCache of cache-dit, with or without its TaylorSeer calibrator.

It computes one block in front and none behind (F1B0), the fewest that it allows. It decides by the change of that
block's residual, or takes full steps by a mask. Each list of blocks in its adapter has a first block and a decision.
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


def dbcache(order: int | None = None, fixed: bool = False) -> Peer:
    """Return DBCache, which reuses the cached blocks' residual, or extrapolates it by TaylorSeer of an order.

    It decides by its threshold; if `fixed`, a mask of steps sets full steps at an interval.
    """

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

    name = "TaylorSeer, fixed steps" if fixed else "DBCache" if order is None else "DBCache + TaylorSeer"
    title = f"cache-dit {name}" if order is None else f"cache-dit {name}, m={order}"
    phase = PHASE if fixed else None
    return Peer(title, enable, has_threshold=not fixed, phase=phase, warmup=WARMUP, check=_check_adapter)


def _package() -> Any:
    """Import cache-dit; raise ValueError if it is not installed."""
    try:
        return importlib.import_module("cache_dit")
    except ImportError as error:
        raise ValueError(f'--peers needs cache-dit ({error}): pip install "relcache[peers]"') from error


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the lines that cache-dit's loggers, which share their handlers, write on enabling and disabling."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("CACHE_DIT").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)


def _check_adapter(model: nn.Module, spec: ModelSpec) -> None:
    package = _package()
    if not package.BlockAdapterRegister.is_supported(model):
        raise ValueError(f"cache-dit has no adapter for {type(model).__name__}: leave out --peers")
    *_, (name, last) = lists_of_blocks(model, spec).items()
    if len(last) < 2:
        raise ValueError(f"DBCache skips the blocks after the first: it needs 2 or more of {name}, see --blocks")
