"""Processes that share pictures, branches or weights take the same full steps, and make the pictures of one process."""

from __future__ import annotations

import itertools
import random
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import HookRegistry, ModelHook, tensor_parallel
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import TensorParallelConfig
from processes import in_processes
from requesting import run
from small_pipelines import Built, flux, qwen_image, wan
from tiny import noise_for, run_loop, tiny_dit
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import relcache
from relcache.engine.ranks import Ranks

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


# Context parallelism


def ulysses(rank: int) -> list[str]:
    problems = []
    for name, build in (("flux", flux), ("wan", wan), ("qwen", qwen_image)):
        built, alone = build(), build()
        divide(built, ContextParallelConfig(ulysses_degree=2, ulysses_anything=name == "qwen"))
        problems += compare(name, built, alone, WAYS)
    return problems


def divide(built: Built, config: ContextParallelConfig) -> None:
    built[0].transformer.enable_parallelism(config=config)
    built[0].transformer.set_attention_backend("native")


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


# Weights that processes share


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
