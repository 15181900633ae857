"""Processes that share guidance, that fail, are apart, or cannot share a picture: they agree, or say why not."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist
from diffusers.hooks import HookRegistry, ModelHook
from processes import in_processes
from shared_work import METHODS, differences
from small_pipelines import flux
from tiny import noise_for, run_loop, tiny_dit
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import relcache
from relcache.engine.ranks import Ranks

# Guidance over two processes


def guided(model: Any, branches: list[int], gather: Any, scheduler: Any) -> Tensor:
    """Make a picture with guidance, with a call of the model for each of `branches`: 0 conditional, 1 not."""
    scheduler.set_timesteps(10)
    sample = noise_for([1])
    labels = [torch.tensor([3]), torch.tensor([1000])]
    for moment in scheduler.timesteps:
        with torch.no_grad():
            noises = [model(sample, timestep=moment[None], class_labels=labels[branch]).sample for branch in branches]
        conditional, other = (noise[:, :4] for noise in gather(noises))
        sample = scheduler.step(other + 2 * (conditional - other), moment, sample).prev_sample
    return sample


def from_both(noises: list[Tensor]) -> list[Tensor]:
    together = [torch.empty_like(noises[0]) for _ in range(2)]
    dist.all_gather(together, noises[0])
    return together


def guidance(rank: int) -> list[str]:
    problems = []
    for method in METHODS:
        pictures = []
        for branches, gather, options in (
            ([0, 1], list, {}),
            ([rank], from_both, {"group": {"guidance": dist.group.WORLD}}),
        ):
            scheduler = diffusers.DDIMScheduler()
            model = tiny_dit()
            with relcache.enable(model, method, scheduler=scheduler, **options) as handle:
                pictures.append((guided(model, branches, gather, scheduler), handle.full_steps))
        problems += differences(f"guidance, {method.name}", pictures[1], pictures[0])
    return problems


def test_guidance_over_two_processes(tmp_path: Path) -> None:
    assert in_processes(guidance, tmp_path) == ["", ""]


# Failures


class Failure(Exception):
    """Raised inside a block of one process."""


def fails(rank: int, method: Any, step: int, failing: tuple[int, ...], folder: Path) -> list[str]:
    """Some processes fail in the middle of a request, and go on; return what each of three requests raises."""
    model, calls = tiny_dit(), 0
    handle = relcache.enable(model, method, group=dist.group.WORLD)
    forward = model.proj_out_1.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if rank in failing and calls == step:
            raise Failure("out of luck")
        return forward(*args, **kwargs)

    model.proj_out_1.forward = counted
    raised = []
    for _ in range(3):
        try:
            run_loop(model)
            raised.append("")
        except (Failure, RuntimeError) as error:
            raised.append(str(error))
        handle.reset()
    (folder / f"done{rank}").touch()
    while not (folder / f"done{1 - rank}").exists():
        time.sleep(0.01)
    return raised


def test_a_process_that_fails_is_named_to_the_others(tmp_path: Path) -> None:
    """And nothing is made from then on, as the exchange that was left unfinished would be mixed up with the next."""
    first, second = in_processes(fails, tmp_path, relcache.RFC(1, threshold=0.3), 5, (1,), tmp_path)
    named, *later = first.splitlines()
    assert named == "process 1 shares its steps with process 0, and failed: Failure('out of luck')"
    assert all("their exchanges no longer match: restart the processes" in text for text in later)
    own, *later = second.splitlines()
    assert own == "out of luck"
    assert later[0] == "process 0 shares its steps with process 1, and failed: it stopped waiting for process 1"
    assert "restart the processes" in later[1]


def test_processes_that_all_fail_go_on(tmp_path: Path) -> None:
    texts = in_processes(fails, tmp_path, relcache.RFC(1, threshold=0.3), 5, (0, 1), tmp_path)
    assert texts == ["out of luck\n\n", "out of luck\n\n"]


def apart(rank: int) -> list[str]:
    """Processes that make different numbers of steps are told so where both decide."""
    model = tiny_dit()
    relcache.enable(model, relcache.RCS(1, threshold=0.3), group=dist.group.WORLD)
    try:
        run_loop(model, steps=10 + rank)
        run_loop(model, steps=11 - rank)
    except RuntimeError as error:
        return [] if "at different steps: process 0 at step" in str(error) else [str(error)]
    return ["nothing was raised"]


def test_processes_at_different_steps(tmp_path: Path) -> None:
    assert in_processes(apart, tmp_path) == ["", ""]


# What is refused


def refused(rank: int) -> list[str]:
    world, mesh = dist.group.WORLD, init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    gathered = flux()[0].transformer
    for block in gathered.transformer_blocks:
        fully_shard(block, mesh=mesh["b"])
    hidden = tiny_dit()
    inner = hidden.transformer_blocks[0].ff
    inner.__class__ = type("FullyShardedDataParallel", (type(inner),), {})  # by its name: it needs a GPU
    padded = tiny_dit()
    spec = replace(relcache.models.spec_for(padded, relcache.models.SPECS), padding=(("*", lambda *given: None),))
    by_hand = tiny_dit()
    HookRegistry.check_if_exists_or_initialize(by_hand).register_hook(ModelHook(), "cp_input---")
    rfc, block = relcache.RFC(1, threshold=0.3), {"granularity": "block"}
    cases = [
        (tiny_dit(), rfc, {"group": mesh}, "the mesh of a group has one dimension, this one has 2"),
        (tiny_dit(), rfc, {"group": 3}, "group= is a ProcessGroup of torch.distributed"),
        (tiny_dit(), rfc, {"group": {"pictures": world}}, "a key of group is one of 'tokens', 'guidance', 'weights'"),
        (tiny_dit(), relcache.RFC(1, threshold=0.3, token_stride=2), {"group": world}, "token_stride=2 would select"),
        (tiny_dit(), rfc, {"group": {"weights": world}, "memory_limit": "1MB"}, "would each choose by its own memory"),
        (padded, rfc, {"group": world, "spec": spec}, "DiTTransformer2DModel pads prompts"),
        (by_hand, rfc, {}, "does not show which processes share a picture: pass group="),
        (hidden, rfc, block, "use torch.distributed.fsdp.fully_shard"),
    ]
    problems = []
    for model, method, options, message in cases:
        try:
            relcache.enable(model, method, **options)
            problems.append(f"not refused: {message}")
        except (TypeError, ValueError) as error:
            problems += [] if message in str(error) else [f"{error} instead of {message}"]
    only = relcache.enable(gathered, rfc, granularity="module")
    if only._session.requests.ranks != Ranks():
        problems.append("FSDP gathers the weights of whole blocks by itself, as each block is called")
    relcache.enable(gathered, rfc, granularity="stack")
    return problems


def test_refused_with_a_sentence(tmp_path: Path) -> None:
    assert in_processes(refused, tmp_path) == ["", ""]


# One process is enough to see


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relcache.session.sharing.process_count", lambda: 2)


@pytest.mark.parametrize("method", METHODS[:2])
def test_processes_that_may_share_a_picture_are_warned_of_once(two_processes: None, method: relcache.Method) -> None:
    """The model does not show it; processes that each make pictures of their own may go on."""
    model, alone = tiny_dit(), tiny_dit()
    with pytest.warns(UserWarning, match=r"runs with 2 processes.*pass group= to relcache.enable"):
        relcache.enable(model, method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = run_loop(model)
        for fixed in METHODS[2:4]:
            relcache.enable(tiny_dit(), fixed)
    with pytest.warns(UserWarning, match="runs with 2 processes"):
        relcache.enable(alone, method)
    assert torch.equal(run_loop(alone), picture)


def test_one_process_is_not_warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_dit()
        with relcache.enable(model, METHODS[0]):
            run_loop(model)
