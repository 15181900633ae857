"""Processes that share pictures, by context parallelism, take the same full steps and make the picture of one."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from processes import in_processes
from requesting import run
from shared_work import GRANULARITIES, METHODS, WAYS, compare, differences, divide, made
from small_pipelines import flux, qwen_image, wan
from torch import Tensor

import relcache


def ulysses(rank: int) -> list[str]:
    problems = []
    for name, build in (("flux", flux), ("wan", wan), ("qwen", qwen_image)):
        built, alone = build(), build()
        divide(built, ContextParallelConfig(ulysses_degree=2, ulysses_anything=name == "qwen"))
        problems += compare(name, built, alone, WAYS)
    return problems


def test_ulysses(tmp_path: Path) -> None:
    assert in_processes(ulysses, tmp_path) == ["", ""]


def with_sums(
    context: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, return_lse: bool = False, **options: Any
) -> Any:
    """Attention that also returns the logarithms of its sums, which ring attention needs and the CPU's has not."""
    query, key, value = (features.transpose(1, 2) for features in (query, key, value))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    output = (scores.softmax(-1) @ value).transpose(1, 2)
    return output, scores.logsumexp(-1).transpose(1, 2)


def ring(rank: int) -> list[str]:
    built, alone = wan(), wan()
    divide(built, ContextParallelConfig(ring_degree=2))
    attention_dispatch._native_attention_forward_op = with_sums
    return compare("ring", built, alone, WAYS[::4])


def test_ring(tmp_path: Path) -> None:
    assert in_processes(ring, tmp_path) == ["", ""]


def unified(rank: int) -> list[str]:
    built, alone = wan(), wan()
    divide(built, ContextParallelConfig(ring_degree=2, ulysses_degree=2))
    attention_dispatch._native_attention_forward_op = with_sums
    return compare("unified", built, alone, WAYS[::4])


def test_ulysses_and_ring_together(tmp_path: Path) -> None:
    assert in_processes(unified, tmp_path, count=4) == 4 * [""]


def begun_before(rank: int) -> list[str]:
    """The model is divided after relcache was enabled."""
    built, alone = wan(), wan()
    expected = made(alone, METHODS[0])
    with relcache.enable(built[0], METHODS[0]) as handle:
        first = run(*built)
        divide(built, ContextParallelConfig(ulysses_degree=2))
        second = run(*built), handle.full_steps
    return differences("before", (first, expected[1]), expected) + differences("after", second, expected)


def test_a_model_that_is_divided_later(tmp_path: Path) -> None:
    assert in_processes(begun_before, tmp_path) == ["", ""]


def random_runs(rank: int, count: int) -> list[str]:
    """Requests of random methods, granularities, steps and sizes, one after another on the same pipelines."""
    chance, problems = random.Random(count), []
    kinds = [("flux", flux), ("wan", wan), ("qwen", qwen_image)]
    pairs = {name: (build(), build()) for name, build in kinds}
    for name, (built, _) in pairs.items():
        divide(built, ContextParallelConfig(ulysses_degree=2, ulysses_anything=name == "qwen"))
    for index in range(count):
        name = chance.choice(list(pairs))
        full_steps, threshold = chance.randint(3, 8), chance.uniform(0.05, 1.0)
        method = chance.choice(
            [
                *METHODS[2:4],
                relcache.RFC(chance.randint(1, 2), threshold=threshold),
                relcache.RCS(chance.randint(1, 2), threshold=threshold),
                relcache.RFC(1, threshold=threshold, full_steps=full_steps),
                relcache.auto(full_steps=full_steps),
                relcache.auto(speedup=chance.uniform(1.5, 3)),
            ]
        )
        options = {"granularity": chance.choice(GRANULARITIES)}
        sizes = {"steps": chance.randint(4, 14), "width": chance.choice([32, 64])}
        built, alone = pairs[name]
        shared = made(built, method, seed=index, sizes=sizes, **options)
        if method.schedule.needs_cost:
            method = replace(method, schedule=relcache.Plan(shared[1]))  # one process would measure other times
        own = made(alone, method, seed=index, sizes=sizes, **options)
        problems += differences(f"run {index}, {name}, {method.name}, {options}, {sizes}", shared, own)
    return problems


def test_random_requests(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert in_processes(random_runs, tmp_path, request.config.getoption("--sequences") or 8) == ["", ""]


def compiled(rank: int) -> list[str]:
    problems = []
    for method in METHODS:
        for granularity, part in itertools.product(GRANULARITIES, ("model", "blocks")):
            built, alone = wan(), wan()
            model = built[0].transformer
            divide(built, ContextParallelConfig(ulysses_degree=2))
            expected = made(alone, method, granularity=granularity)
            (model.compile if part == "model" else model.compile_repeated_blocks)(backend="eager")
            what = f"compiled {part}, {method.name}, {granularity}"
            try:
                problems += differences(what, made(built, method, granularity=granularity), expected)
            except ValueError as error:
                is_refused = part == "blocks" and granularity != "module" and "granularity='module'" in str(error)
                problems += [] if is_refused else [f"{what}: {error}"]
    return problems


def test_compiled_code(tmp_path: Path) -> None:
    """Of blocks that are compiled by themselves, the first one divides the tokens: such a block cannot be skipped."""
    assert in_processes(compiled, tmp_path) == ["", ""]


def own_methods(rank: int) -> list[str]:
    """Requests with methods of their own on a divided model."""
    built, alone, problems = wan(), wan(), []
    divide(built, ContextParallelConfig(ulysses_degree=2))
    handle = relcache.enable(built[0], METHODS[4], granularity="stack")
    for method in METHODS:
        with handle.request(method):
            found = run(*built), handle.full_steps
        problems += differences(f"own, {method.name}", found, made(alone, method, granularity="stack"))
    return problems


def test_requests_with_methods_of_their_own(tmp_path: Path) -> None:
    assert in_processes(own_methods, tmp_path) == ["", ""]


def two_experts(rank: int) -> list[str]:
    """Two transformers, each divided, that make a picture in turn."""
    problems = []
    for method in METHODS:
        built, alone = wan(2), wan(2)
        for model in (built[0].transformer, built[0].transformer_2):
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
            model.set_attention_backend("native")
        problems += differences(f"two experts, {method.name}", made(built, method), made(alone, method))
    return problems


def test_two_transformers(tmp_path: Path) -> None:
    assert in_processes(two_experts, tmp_path) == ["", ""]


def limited(rank: int) -> list[str]:
    """Under a limit each process chooses as one process does, and holds its own half of the tokens."""
    problems = []
    for limit, chosen in (("40 kB", "granularity 'module'"), ("5 kB", "granularity 'block', bfloat16")):
        built, alone = wan(), wan()
        divide(built, ContextParallelConfig(ulysses_degree=2))
        reports = []
        for each in (built, alone):
            with relcache.enable(each[0], METHODS[0], memory_limit=limit) as handle:
                run(*each)
                reports.append(handle.report())
        shared, own = reports
        if chosen not in own.notes[0] or (shared.notes, shared.full_steps) != (own.notes, own.full_steps):
            problems.append(f"{limit}: {shared} instead of {own}")
        if not shared.cache_bytes < 0.6 * own.cache_bytes:
            problems.append(f"{limit}: {shared.cache_bytes} bytes, one process {own.cache_bytes}")
    return problems


def test_a_memory_limit(tmp_path: Path) -> None:
    assert in_processes(limited, tmp_path) == ["", ""]
