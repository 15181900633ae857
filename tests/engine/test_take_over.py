"""A new handle takes over whole or not at all, and no handle keeps a model alive."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from test_enable_disable import METHOD, STEPS, attributes, plain_picture
from tiny import run_loop, tiny_dit
from torch import nn

import relcache
from relcache import FORA, RFC
from relcache.engine.host import Host
from relcache.engine.patch import Patch
from relcache.engine.unit import Runner
from relcache.session.attachment import Attachment


def fails(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException, calls: int = 0) -> None:
    """Let `owner.name` raise `error` once it has been called `calls` times; it does its work before it does."""
    original, done = getattr(owner, name), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        done.append(1)
        if len(done) > calls:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)


PLACES = [(Host, "swap_units", 0), (Runner, "attach", 0), (Runner, "attach", 2), (Attachment, "_watch", 0),
          (Patch, "swap", 0), (Patch, "swap", 3), (Patch, "swap_call", 1)]  # fmt: skip


@pytest.mark.parametrize("before", ["enabled", "plain"])
@pytest.mark.parametrize("error", [RuntimeError("half-way"), KeyboardInterrupt("half-way")], ids=["error", "interrupt"])
@pytest.mark.parametrize(("owner", "name", "calls"), PLACES)
def test_an_enable_that_fails_half_way_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int, error: BaseException, before: str
) -> None:
    model, undisturbed = tiny_dit(), tiny_dit()
    relcache.enable(undisturbed, METHOD)
    handle = relcache.enable(model, METHOD) if before == "enabled" else None
    if handle is not None:
        run_loop(model, steps=STEPS)
        record = handle.report()
    there = attributes(model)
    with monkeypatch.context() as patch:
        fails(patch, owner, name, error, calls)
        with pytest.raises(type(error), match="half-way"):
            relcache.enable(model, RFC(2, threshold=0.3))
    after = attributes(model)
    for now, then in zip(after, there, strict=True):
        now, then = ({key: value for key, value in each.items() if "hooks" not in key} for each in (now, then))
        assert now.keys() == then.keys()
        assert all(now[key] is then[key] for key in then), "the very objects"
    assert [len(each["_forward_hooks"]) for each in after] == [len(each["_forward_hooks"]) for each in there]
    if handle is None:
        assert torch.equal(run_loop(model, steps=STEPS), plain_picture())
        return
    assert handle.enabled
    assert handle.report() == record
    assert torch.equal(run_loop(model, steps=STEPS), run_loop(undisturbed, steps=STEPS))
    assert handle.full_steps == [0, 1, 5, 9]
    handle.disable()
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())


def test_an_enable_that_fails_in_the_middle_of_a_request_does_not_disturb_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)

    def interfere(module: nn.Module, args: Any, output: Any) -> None:
        if len(handle._session.cache.request.signal) == 4:
            with monkeypatch.context() as patch:
                fails(patch, Host, "swap_units", RuntimeError("half-way"))
                with pytest.raises(RuntimeError, match="half-way"):
                    relcache.enable(model, FORA(3))

    picture = run_loop(model, steps=STEPS)
    model.register_forward_hook(interfere)
    assert torch.equal(run_loop(model, steps=STEPS), picture)
    assert handle.full_steps == [0, 1, 5, 9]


def test_an_enable_that_fails_at_the_second_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each had a handle of its own, and goes on with it."""

    class Pipeline:
        def __init__(self) -> None:
            self.transformer, self.transformer_2 = tiny_dit(), tiny_dit(seed=1)
            self.components = {"transformer": self.transformer, "transformer_2": self.transformer_2}

    pipeline = Pipeline()
    handles = [relcache.enable(pipeline.transformer, METHOD), relcache.enable(pipeline.transformer_2, FORA(3))]
    with monkeypatch.context() as patch:
        fails(patch, Host, "swap_units", RuntimeError("half-way"), calls=1)
        with pytest.raises(RuntimeError, match="half-way"):
            relcache.enable(pipeline, RFC(2, threshold=0.3))
    assert all(handle.enabled for handle in handles)
    run_loop(pipeline.transformer, steps=STEPS)
    run_loop(pipeline.transformer_2, steps=STEPS)
    assert [handle.full_steps for handle in handles] == [[0, 1, 5, 9], [0, 1, 4, 7]]
    both = relcache.enable(pipeline, RFC(2, threshold=0.3))
    assert [handle.enabled for handle in (*handles, both)] == [False, False, True]


def test_an_enable_that_fails_on_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_dit()
    model.compile(backend="eager")
    handle = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    with monkeypatch.context() as patch:
        fails(patch, Host, "swap_units", RuntimeError("half-way"))
        with pytest.raises(RuntimeError, match="half-way"):
            relcache.enable(model, RFC(2, threshold=0.3))
    run_loop(model, steps=STEPS)
    assert handle.full_steps == [0, 1, 5, 9]


def test_a_handle_that_was_taken_over_is_gone_for_good(model: DiTTransformer2DModel) -> None:
    old = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    new = relcache.enable(model, FORA(3))
    held = [weakref.ref(branch) for branch in old._session.cache.request.branches.values()]
    assert not [tensor for branch in held for tensor in branch().tensors()], "its features are dropped"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.disable()
        old.disable()
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())


def test_a_disabled_handle_cannot_be_entered(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, METHOD)
    with handle:
        run_loop(model, steps=STEPS)
    with pytest.raises(RuntimeError, match=r"this handle was disabled.*call relcache\.enable\(\.\.\.\) again"), handle:
        run_loop(model, steps=STEPS)
    with pytest.raises(RuntimeError, match="this handle was disabled"):
        handle.__enter__()
    other = relcache.enable(model, METHOD)
    relcache.enable(model, FORA(3))
    with pytest.raises(RuntimeError, match="this handle was disabled"):
        other.__enter__()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize("state", ["enabled", "run", "reported", "disabled", "taken over"])
def test_a_handle_keeps_no_weights(state: str, granularity: Any, compiled: bool) -> None:
    model = tiny_dit()
    if compiled:
        model.compile(backend="eager")
    handle = relcache.enable(model, RFC(1, threshold=0.5), granularity=granularity)
    if state != "enabled":
        run_loop(model, steps=STEPS)
    if state == "reported":
        handle.report()
    if state == "disabled":
        handle.disable()
    if state == "taken over":
        relcache.enable(model, METHOD)
    alive = [weakref.ref(model), *(weakref.ref(weight) for weight in model.parameters())]
    del model
    torch._dynamo.reset()
    gc.collect()
    assert [reference for reference in alive if reference() is not None] == []
    assert not handle.enabled
    assert handle.report().steps == (0 if state == "enabled" else STEPS)
    handle.disable()
    with pytest.raises(RuntimeError, match="its model is gone"):
        handle.__enter__()
