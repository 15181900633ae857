"""Methods, and comparisons of pictures that processes share with those of one process."""

from __future__ import annotations

import itertools
from typing import Any

from diffusers import ContextParallelConfig
from requesting import run
from small_pipelines import Built
from torch import Tensor

import relcache

METHODS: list[Any] = [
    relcache.RFC(1, threshold=0.3),
    relcache.RFC(2, threshold=0.3),
    relcache.RFE(2, interval=4),
    relcache.TaylorSeer(2, interval=4),
    relcache.auto(full_steps=5),
]
GRANULARITIES: list[Any] = ["module", "block", "stack"]
WAYS = list(itertools.product(METHODS, GRANULARITIES))
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def made(
    built: Built, method: Any, seed: int = 0, sizes: dict[str, Any] | None = None, **options: Any
) -> tuple[Tensor, list[int]]:
    """Return the picture with `method` and the full steps."""
    with relcache.enable(built[0], method, **options) as handle:
        return run(*built, seed=seed, **(sizes or {})), handle.full_steps


def differences(what: str, found: tuple[Tensor, list[int]], expected: tuple[Tensor, list[int]]) -> list[str]:
    """Return how a picture and its full steps differ from the expected ones."""
    problems = []
    if found[1] != expected[1]:
        problems.append(f"{what}: full steps {found[1]} instead of {expected[1]}")
    far = (found[0] - expected[0]).abs().max() / expected[0].abs().max()
    if not far < 1e-5:
        problems.append(f"{what}: the picture is {float(far):.1e} away")
    return problems


def compare(name: str, built: Built, expected: Built, ways: list[Any]) -> list[str]:
    """Return how pictures of a pipeline that processes share differ from those of one process."""
    problems = []
    for method, granularity in ways:
        own = made(expected, method, granularity=granularity)
        shared = made(built, method, granularity=granularity)
        problems += differences(f"{name}, {method.name}, {granularity}", shared, own)
    return problems


def divide(built: Built, config: ContextParallelConfig) -> None:
    built[0].transformer.enable_parallelism(config=config)
    built[0].transformer.set_attention_backend("native")
