"""Processes that share a picture: schedules with an error signal are refused, fixed schedules go on working."""

from __future__ import annotations

import datetime
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from diffusers import ContextParallelConfig
from diffusers.hooks import HookRegistry, ModelHook
from small_pipelines import flux, wan
from test_ecosystem import run
from tiny import run_loop, tiny_dit
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import relcache

SIGNAL = [relcache.RFC(1, threshold=0.5), relcache.RCS(1, threshold=0.5)]
FIXED = [relcache.FORA(3), relcache.TaylorSeer(1, interval=4), relcache.RFE(1, interval=4)]
GRANULARITIES: list[Any] = ["module", "block", "stack"]
DIVIDED = r"runs under context parallelism.*Interval or Plan, as FORA, TaylorSeer and RFE"
SHARDED = r"has FSDP-sharded modules inside what a cached step skips.*Interval or Plan, as FORA, TaylorSeer and RFE"


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relcache.engine.host.process_count", lambda: 2)


@pytest.mark.parametrize("method", SIGNAL)
def test_processes_that_may_share_a_picture_are_warned_of_once(two_processes: None, method: relcache.Method) -> None:
    """The model does not show it; processes that each make pictures of their own may go on."""
    model, alone = tiny_dit(), tiny_dit()
    with pytest.warns(UserWarning, match="runs with 2 processes.*That is right where each makes pictures of its own"):
        relcache.enable(model, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = run_loop(model)
        for fixed in FIXED:
            relcache.enable(tiny_dit(), fixed)
    with pytest.warns(UserWarning, match="runs with 2 processes"):
        relcache.enable(alone, method)
    assert torch.equal(run_loop(alone), picture)


def test_one_process_is_not_warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_loop_with(relcache.RFC(1, threshold=0.5))


def run_loop_with(method: relcache.Method) -> None:
    model = tiny_dit()
    with relcache.enable(model, method):
        run_loop(model)


class ContextParallelSplitHook(ModelHook):
    """By its name one of diffusers, which divides the first argument's tokens."""


@pytest.mark.filterwarnings("ignore:relcache. torch.distributed runs")
@pytest.mark.parametrize("where", ["", "transformer_blocks.0"])
def test_context_parallelism_that_was_applied_by_hand(two_processes: None, where: str) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, relcache.RFC(1, threshold=0.5))
    run_loop(model)
    registry = HookRegistry.check_if_exists_or_initialize(model.get_submodule(where))
    registry.register_hook(ContextParallelSplitHook(), f"cp_input---{where}")
    with pytest.raises(ValueError, match=DIVIDED):
        run_loop(model)
    with pytest.raises(ValueError, match=DIVIDED):
        relcache.enable(model, relcache.RCS(1, threshold=0.5))
    registry.remove_hook(f"cp_input---{where}")
    run_loop(model)
    assert handle.enabled


class FSDPModule(nn.Module):
    """By its name what fully_shard makes of a module."""


def shard(module: nn.Module) -> None:
    module.__class__ = type(f"FSDP{type(module).__name__}", (FSDPModule, type(module)), {})


@pytest.mark.filterwarnings("ignore:relcache. torch.distributed runs")
@pytest.mark.parametrize(
    ("where", "refused"),
    [
        ("", []),
        ("transformer_blocks.0", []),
        ("transformer_blocks.1.attn1", ["block", "stack"]),
        ("transformer_blocks.1.ff.net.2", ["module", "block", "stack"]),
        ("proj_out_2", []),
    ],
)
def test_modules_that_are_sharded_inside_units(two_processes: None, where: str, refused: list[str]) -> None:
    for granularity in GRANULARITIES:
        model = tiny_dit()
        relcache.enable(model, relcache.RFC(1, threshold=0.5), granularity=granularity)
        shard(model.get_submodule(where))
        if granularity not in refused:
            run_loop(model)
            relcache.enable(model, relcache.RFC(1, threshold=0.5), granularity=granularity)
            continue
        with pytest.raises(ValueError, match=SHARDED):
            run_loop(model)
        with pytest.raises(ValueError, match=SHARDED):
            relcache.enable(model, relcache.RFC(1, threshold=0.5), granularity=granularity)
        relcache.enable(model, relcache.FORA(3), granularity=granularity)
        run_loop(model)


@pytest.mark.filterwarnings("ignore:relcache. torch.distributed runs")
def test_a_compiled_model_with_sharded_blocks_is_not_looked_into(two_processes: None) -> None:
    model = tiny_dit()
    shard(model.transformer_blocks[0])
    relcache.enable(model, relcache.RFC(1, threshold=0.5), granularity="stack")
    model.compile(backend="eager")
    with pytest.raises(ValueError, match=SHARDED):
        run_loop(model)


# Two real processes


def in_two_processes(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.accelerator.device_count = lambda: 2  # diffusers divides by it, and a CPU has none
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", datetime.timedelta(seconds=60), world_size=2, rank=rank)
    problems = [*context_parallel(), *sharded()]
    (folder / str(rank)).write_text("\n".join(problems))
    dist.destroy_process_group()


def context_parallel() -> list[str]:
    built, problems = wan(), []
    ways = [(method, granularity) for method in FIXED[:2] for granularity in GRANULARITIES]
    expected = []
    for method, granularity in ways:
        with relcache.enable(built[0], method, granularity=granularity) as handle:
            expected.append((run(built), handle.full_steps))
    handle = relcache.enable(built[0], SIGNAL[0])
    built[0].transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    built[0].transformer.set_attention_backend("native")
    problems += unless_refused(lambda: run(built), DIVIDED)
    handle.disable()
    problems += unless_refused(lambda: relcache.enable(built[0], SIGNAL[1]), DIVIDED)
    for (method, granularity), (picture, full_steps) in zip(ways, expected, strict=True):
        with relcache.enable(built[0], method, granularity=granularity) as handle:
            if not torch.allclose(run(built), picture, rtol=1e-4, atol=1e-5) or handle.full_steps != full_steps:
                problems.append(f"context parallelism: {method.name} at {granularity} gives another picture")
    return problems


def sharded() -> list[str]:
    expected, built, problems = flux(), flux(), []
    mesh, model = init_device_mesh("cpu", (2,)), built[0].transformer
    ways = [(FIXED[1], "stack"), (SIGNAL[0], "module"), (FIXED[0], "block")]
    for _, granularity in ways:  # whole blocks are found before, as FSDP forbids copies
        relcache.enable(built[0], FIXED[0], granularity=granularity).disable()
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        for name, part in block.named_children():
            if name == "ff":
                fully_shard(part, mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method, granularity in ways:
        with relcache.enable(expected[0], method, granularity=granularity):
            picture = run(expected)
        with relcache.enable(built[0], method, granularity=granularity):
            if not torch.allclose(run(built), picture, rtol=1e-4, atol=1e-5):
                problems.append(f"FSDP: {method.name} at {granularity} gives another picture")
    return problems + unless_refused(lambda: relcache.enable(model, SIGNAL[0], granularity="block"), SHARDED)


def unless_refused(work: Any, match: str) -> list[str]:
    try:
        with pytest.raises(ValueError, match=match):
            work()
    except BaseException as error:
        return [f"not refused: {error}"]
    return []


def test_context_parallelism_and_fsdp_in_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(in_two_processes, (port, tmp_path), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["", ""]
