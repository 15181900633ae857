"""Nothing is held twice, nothing longer than it is needed, and nothing that belongs to a graph."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from tiny import (
    BrokenOff,
    DiTWithContext,
    call_along,
    noise_for,
    run_guided,
    run_loop,
    run_pipeline,
    timesteps_for,
    tiny_dit,
    tiny_pipeline,
    trajectory,
)
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import relcache
from relcache import FORA, RFC, RFE, TaylorSeer

LABELS = torch.tensor([3, 5])
BLOCKS = 4
ALWAYS = 99  # steps of a warm-up, so that all are full
METHODS = [FORA(4, warmup=ALWAYS), TaylorSeer(2, interval=4, warmup=ALWAYS), RFC(2, threshold=0.1, warmup=ALWAYS)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_dtype = pytest.mark.parametrize("cache_dtype", ["features", "bfloat16", "int8"])


FEATURE = 2 * 16 * 16 * 4
KNOWN_BY = 2 * 2 * 4 * 8 * 8 * 4  # the noise that a request began with, and as much for the rest of the calls


class Made(TorchDispatchMode):
    """Every storage that is made while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_identity(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and _identity(leaf) not in given:
                storage = leaf.untyped_storage()
                self.storages[_identity(leaf)] = (StorageWeakRef(storage), storage.nbytes())
        return output

    @property
    def alive(self) -> int:
        """Bytes of those that somebody still has."""
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def _identity(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def steps(model: DiTTransformer2DModel, first: int, last: int) -> None:
    with torch.no_grad():
        for step in range(first, last):
            model(noise_for([0, 1]), timestep=timesteps_for(12)[step].expand(2), class_labels=LABELS)


def held(handle: relcache.Handle) -> list[list[Tensor]]:
    """What the one branch holds, unit by unit."""
    (branch,) = handle._session.cache.request.branches.values()
    return [[leaf for s in cell.streams for leaf in tree_leaves(s.state) if isinstance(leaf, Tensor)]
            for cell in branch.cells]  # fmt: skip


@every_dtype
@every_method
def test_no_ladder_outlives_the_next(method: Any, cache_dtype: Any) -> None:
    """When a unit begins to work, what those before it held until this step is gone, or is what they hold now."""
    model = tiny_dit(blocks=BLOCKS)
    handle = relcache.enable(model, method, cache_dtype=cache_dtype)
    steps(model, 0, 4)
    past = [weakref.ref(value) for unit in held(handle) for value in unit]
    left_over: list[int] = []

    def count(*_: Any) -> None:
        present = [value for unit in held(handle) for value in unit]
        alive = [value for reference in past if (value := reference()) is not None]
        left_over.append(sum(all(value is not other for other in present) for value in alive))

    for block in model.transformer_blocks:
        for layer in (block.attn1.to_q, block.ff.net[2]):
            layer.register_forward_pre_hook(count)
    steps(model, 4, 5)
    count()
    assert left_over == [0] * (2 * BLOCKS + 1)


def test_what_reuse_has_returned_stays_as_it_was() -> None:
    """Its forecasts are views of what is cached, which the next full step must not write over."""
    model = tiny_dit()
    relcache.enable(model, FORA(2, warmup=1))
    outputs: list[Tensor] = []
    model.transformer_blocks[0].attn1.register_forward_hook(lambda *a: outputs.append(a[-1]))
    steps(model, 0, 2)
    before = outputs[1].clone()
    steps(model, 2, 4)
    assert torch.equal(outputs[1], before)


@pytest.mark.parametrize("granularity", ["module", "stack"])
@every_dtype
@every_method
def test_what_is_held_is_all_there_is(method: Any, cache_dtype: Any, granularity: Any) -> None:
    """Beyond the bytes that the report has, less than one feature is alive, and what a request is known by."""
    model = tiny_dit(blocks=BLOCKS)
    handle = relcache.enable(model, method, cache_dtype=cache_dtype, granularity=granularity)
    with Made() as made:
        steps(model, 0, 4)
    held_bytes = handle._session.cache.request.cache_bytes
    assert held_bytes <= made.alive < held_bytes + FEATURE + KNOWN_BY
    handle.free()
    assert made.alive < FEATURE + KNOWN_BY


@pytest.mark.parametrize("granularity", ["module", "stack"])
@every_dtype
def test_nothing_belongs_to_a_graph(cache_dtype: Any, granularity: Any) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, RFE(1, interval=3), cache_dtype=cache_dtype, granularity=granularity)
    with Made() as made:
        for step in range(2):
            sample = noise_for([0, 1]).requires_grad_()
            output = model(sample, timestep=timesteps_for(12)[step].expand(2), class_labels=LABELS).sample
            assert output.grad_fn is not None
    request = handle._session.cache.request
    (branch,) = request.branches.values()
    kept = [*branch.tensors(), *request.fallback_codes.values()]
    kept += [leaf for cell in branch.cells for leaf in tree_leaves(cell.empties) if isinstance(leaf, Tensor)]
    assert len(kept) > 4
    assert not any(value.requires_grad or value.grad_fn is not None for value in kept)
    del output, sample
    assert made.alive < request.cache_bytes + FEATURE + KNOWN_BY


def test_what_others_write_into_an_output_is_not_cached() -> None:
    """The cache's terms are its own, whatever becomes of the tensors that they were made of."""
    for cache_dtype in ("features", "int8"):
        model = tiny_dit()
        handle = relcache.enable(model, TaylorSeer(1, interval=4), cache_dtype=cache_dtype)
        outputs: list[Tensor] = []
        hook = model.transformer_blocks[0].attn1.register_forward_hook(lambda *a, o=outputs: o.append(a[-1]))
        steps(model, 0, 2)
        hook.remove()
        before = [leaf.clone() for leaf in tree_leaves([state for *_, state in handle.states()])]
        for output in outputs:
            output.add_(1)
        after = tree_leaves([state for *_, state in handle.states()])
        assert before
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# Freed at the end


def features_of(handle: relcache.Handle) -> dict[str, int]:
    """Tensors that each branch holds."""
    return {name: len(branch.tensors()) for name, branch in handle._session.cache.request.branches.items()}


def test_freed_at_the_end_of_a_pipeline() -> None:
    pipeline, plain = tiny_pipeline(), tiny_pipeline()
    relcache.enable(plain, RFC(2, threshold=0.6))
    handle = relcache.enable(pipeline, RFC(2, threshold=0.6), free_at_end=True)
    for count in (8, 6):
        assert torch.equal(run_pipeline(pipeline, [3], count), run_pipeline(plain, [3], count))
        assert features_of(handle) == {"0": 0}
        assert handle.report().steps == count
        assert handle.report().cache_bytes > 0


@pytest.mark.parametrize("context", [False, True], ids=["conditioning", "cache_context"])
def test_each_branch_is_freed_as_it_ends(context: bool) -> None:
    model = tiny_dit(kind=DiTWithContext)
    handle = relcache.enable(model, TaylorSeer(1, interval=4), num_inference_steps=6, free_at_end=True)
    seen: list[list[bool]] = []
    branches = {"cond": range(6), "uncond": range(6)}
    after = lambda step, branch: seen.append([count > 0 for count in features_of(handle).values()])  # noqa: E731
    call_along(model, trajectory(6), branches, context, after)
    assert seen[-3:] == [[True, True], [False, True], [False, False]]
    assert handle.report().full_steps == [0, 1, 5]


def test_a_branch_that_ended_before_is_freed_with_the_others() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, TaylorSeer(1, interval=4), num_inference_steps=12, free_at_end=True)
    run_guided(model, uncond_steps=range(4))
    assert features_of(handle) == {"0": 0, "1": 0}


def test_the_number_of_steps_must_be_known(model: DiTTransformer2DModel) -> None:
    relcache.enable(model, TaylorSeer(1, interval=4), free_at_end=True)
    with pytest.raises(ValueError, match=r"free_at_end needs the number of steps: enable the pipeline .* or pass "):
        run_loop(model)


def test_free_in_the_middle(model: DiTTransformer2DModel) -> None:
    """The request goes on: with full steps until there is a history again."""
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    outputs = call_along(
        model, trajectory(12), {"cond": range(12)}, after=lambda step, branch: handle.free() if step == 6 else None
    )
    plain = call_along(tiny_dit(), trajectory(12), {"cond": range(12)})
    report = handle.report()
    assert (report.steps, report.full_steps) == (12, [0, 1, 5, 7, 8, 9])
    assert torch.equal(outputs["cond"][7], plain["cond"][7])


@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize("error", [BrokenOff, KeyboardInterrupt])
def test_free_after_an_accident(error: type[BaseException], granularity: Any) -> None:
    """The unit that was at work keeps neither features nor its input, whether its end was seen or not."""
    model = tiny_dit(blocks=BLOCKS)
    handle = relcache.enable(model, TaylorSeer(1, interval=4, warmup=ALWAYS), granularity=granularity)
    steps(model, 0, 3)
    kept = [weakref.ref(value) for unit in held(handle) for value in unit]
    given: list[StorageWeakRef] = []

    def stumble(*_: Any) -> None:
        raise error

    def remember(module: Any, args: Any) -> None:
        given.append(StorageWeakRef(args[0].untyped_storage()))

    hooks = [
        model.transformer_blocks[0].register_forward_pre_hook(remember),
        model.transformer_blocks[1].ff.net[0].register_forward_pre_hook(stumble),
    ]
    with pytest.raises(error):
        steps(model, 3, 4)
    for hook in hooks:
        hook.remove()
    handle.free()
    assert kept
    assert not any(reference() is not None for reference in kept)
    assert [reference.expired() for reference in given] == [True]
