"""Processes that share weights take the same full steps, each with pictures of its own or all with the same."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.hooks import tensor_parallel
from diffusers.models._modeling_parallel import TensorParallelConfig
from processes import in_processes
from requesting import run
from shared_work import METHODS, WAYS, compare, differences, made
from small_pipelines import Built, flux, qwen_image
from tiny import run_loop, tiny_dit
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import relcache


def sharded(built: Built, inside: bool) -> Built:
    """Divide the weights of a FLUX's blocks, and of the feed-forwards inside."""
    model, mesh = built[0].transformer, init_device_mesh("cpu", (2,))
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        if inside and hasattr(block, "ff"):
            fully_shard(block.ff.net[2], mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return built


def fsdp(rank: int) -> list[str]:
    """Each process makes a picture of its own; together they decide as one process does for a batch of both."""
    problems = []
    for method, granularity in WAYS:
        built, alone = sharded(flux(), inside=True), flux()
        own = made(built, method, seed=rank, granularity=granularity)
        noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
        call = {**alone[1], "prompt": 2 * [alone[1]["prompt"]], "generator": noise}
        with relcache.enable(alone[0], method, granularity=granularity) as handle:
            both = run(alone[0], call, **{"generator": noise})
        expected = both[rank : rank + 1], handle.full_steps
        problems += differences(f"FSDP, {method.name}, {granularity}", own, expected)
    return problems


def test_fsdp_with_pictures_of_their_own(tmp_path: Path) -> None:
    assert in_processes(fsdp, tmp_path) == ["", ""]


def own_picture(seed: int) -> tuple[Tensor, list[int]]:
    return made(flux(), METHODS[0], seed, {"steps": 10 + seed})


def data_parallelism(rank: int, expected: list[tuple[Tensor, list[int]]]) -> list[str]:
    return differences("alone", own_picture(rank), expected[rank])


def test_data_parallelism(tmp_path: Path) -> None:
    """Each process makes pictures of its own, with steps of its own."""
    expected = [own_picture(rank) for rank in range(2)]
    assert in_processes(data_parallelism, tmp_path, expected) == ["", ""]


def tensor_parallelism(rank: int) -> list[str]:
    tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
    problems = []
    for name, build in (("flux", flux), ("qwen", qwen_image)):
        built, alone = build(), build()
        built[0].transformer.enable_parallelism(config=TensorParallelConfig(tp_degree=2))
        problems += compare(f"tensor parallelism, {name}", built, alone, WAYS)
    return problems


def test_tensor_parallelism(tmp_path: Path) -> None:
    assert in_processes(tensor_parallelism, tmp_path) == ["", ""]


def two_dimensions(rank: int) -> list[str]:
    """Weights divided along both dimensions of a mesh: all four processes decide by the mean of all errors."""
    model, mesh = tiny_dit(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    for name, block in zip(mesh.mesh_dim_names, model.transformer_blocks, strict=True):
        fully_shard(block.ff.net[2], mesh=mesh[name])
        fully_shard(block, mesh=mesh[name])
    handle = relcache.enable(model, relcache.RFC(1, threshold=0.3), granularity="block")
    numbers = [0.1, 0.7, 0.01, 3.3]
    agreed = handle._session.requests.ranks.agree(numbers[rank], 0, torch.device("cpu"))
    run_loop(model)
    return [f"{len(handle._session.requests.ranks.weights)} groups, {agreed!r}, {handle.full_steps}"]


def test_weights_over_two_dimensions(tmp_path: Path) -> None:
    texts = in_processes(two_dimensions, tmp_path, count=4)
    assert len(set(texts)) == 1
    assert texts[0].startswith("2 groups, 1.0275")
