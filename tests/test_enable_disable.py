"""Switching on and off leaves no trace, and several models and handles do not meet."""

from __future__ import annotations

import copy
import gc
import types
import warnings
import weakref
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, PyramidAttentionBroadcastConfig
from tiny import ddim, noise_for, relative_error, run_guided, run_loop, run_pipeline, tiny_dit, tiny_pipeline
from torch import Tensor, nn

import relcache
from relcache import FORA, RFC, TaylorSeer

METHOD = TaylorSeer(2, interval=4)
STEPS = 10


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    """What each module holds as attributes of its own."""
    return [dict(module.__dict__) for module in model.modules()]


def plain_picture() -> Tensor:
    return run_loop(tiny_dit(), steps=STEPS)


def test_disable_leaves_no_trace(model: DiTTransformer2DModel) -> None:
    before = attributes(model)
    handle = relcache.enable(model, METHOD)
    cached = run_loop(model, steps=STEPS)
    assert handle.enabled
    handle.disable()
    assert not handle.enabled
    after = attributes(model)
    assert [set(a) for a in after] == [set(b) for b in before]
    assert all(a[key] is b[key] for a, b in zip(after, before, strict=True) for key in b)
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())
    assert not torch.equal(cached, plain_picture())


def test_disable_restores_the_context_manager(model_with_context: DiTTransformer2DModel) -> None:
    """Compared with a model that has run too, because diffusers' cache_context leaves a registry behind."""
    handle = relcache.enable(model_with_context, METHOD)
    assert "cache_context" in model_with_context.__dict__
    run_guided(model_with_context, STEPS, context=True)
    handle.disable()
    plain = tiny_dit(kind=type(model_with_context))
    picture = run_guided(plain, STEPS, context=True)
    assert [set(a) for a in attributes(model_with_context)] == [set(b) for b in attributes(plain)]
    assert torch.equal(run_guided(model_with_context, STEPS, context=True), picture)


def test_disable_restores_an_instance_attribute(model: DiTTransformer2DModel) -> None:
    """An earlier forward on the instance is still called, and comes back as the same object."""
    calls = []
    attention = model.transformer_blocks[0].attn1
    original = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        calls.append("attention")
        return original(*args, **kwargs)

    attention.forward = forward
    model_forward = model.forward = model.forward
    handle = relcache.enable(model, FORA(4))
    run_loop(model, steps=STEPS)
    assert len(calls) == handle.report().nfc
    handle.disable()
    assert attention.__dict__["forward"] is forward
    assert model.__dict__["forward"] is model_forward


def test_disable_twice(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, METHOD)
    handle.disable()
    handle.disable()
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())


def test_disabling_an_old_handle_leaves_the_new_one_alone(model: DiTTransformer2DModel) -> None:
    old = relcache.enable(model, METHOD)
    new = relcache.enable(model, FORA(4))
    assert not old.enabled
    assert new.enabled
    old.disable()
    assert new.enabled
    run_loop(model, steps=STEPS)
    assert new.report().full_steps == [0, 1, 5, 9]
    assert old.report().steps == 0
    new.disable()
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())


def test_enable_on_an_enabled_model_takes_over(model: DiTTransformer2DModel) -> None:
    """Nothing is cached twice: the picture is that of the second method alone."""
    relcache.enable(model, FORA(5))
    run_loop(model, steps=STEPS)
    relcache.enable(model, METHOD)
    alone = tiny_dit()
    relcache.enable(alone, METHOD)
    assert torch.equal(run_loop(model, steps=STEPS), run_loop(alone, steps=STEPS))


def test_enable_through_the_pipeline_and_through_its_transformer() -> None:
    """The same transformer, whichever way it is named."""
    pipeline = tiny_pipeline()
    first = relcache.enable(pipeline, METHOD)
    second = relcache.enable(pipeline.transformer, METHOD)
    assert (first.enabled, second.enabled) == (False, True)


def test_a_refused_enable_changes_nothing(model: DiTTransformer2DModel) -> None:
    """Enabling with a spec that fits nothing leaves the earlier handle at work."""
    handle = relcache.enable(model, METHOD)
    with pytest.raises(ValueError, match="no_such"):
        relcache.enable(model, METHOD, spec=relcache.ModelSpec("DiTTransformer2DModel", ("blocks.*.no_such",)))
    assert handle.enabled
    run_loop(model, steps=STEPS)
    assert handle.report().full_steps == [0, 1, 5, 9]


def test_context_manager(model: DiTTransformer2DModel) -> None:
    with relcache.enable(model, METHOD) as handle:
        cached = run_loop(model, steps=STEPS)
    assert not handle.enabled
    assert handle.report().full_steps == [0, 1, 5, 9], "the report outlives the handle's work"
    assert not torch.equal(cached, plain_picture())
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())


def test_context_manager_ends_with_an_error(model: DiTTransformer2DModel) -> None:
    before = attributes(model)

    def work() -> None:
        with relcache.enable(model, METHOD):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        work()
    assert [set(a) for a in attributes(model)] == [set(b) for b in before]


def test_two_pipelines_of_the_same_class() -> None:
    """Only the enabled one is cached; with both enabled, each follows its own method."""
    plain = run_pipeline(tiny_pipeline(), [3], STEPS)
    first, second = tiny_pipeline(), tiny_pipeline()
    handle = relcache.enable(first, METHOD)
    assert torch.equal(run_pipeline(second, [3], STEPS), plain)
    assert not torch.equal(run_pipeline(first, [3], STEPS), plain)
    other = relcache.enable(second, FORA(3))
    run_pipeline(second, [3], STEPS)
    assert handle.report().full_steps == [0, 1, 5, 9]
    assert other.report().full_steps == [0, 1, 4, 7]
    handle.disable()
    assert other.enabled


def test_two_models_whose_calls_interleave() -> None:
    """Step by step in turn, with other methods: each as if alone."""
    methods = {"a": METHOD, "b": RFC(2, threshold=0.8)}
    alone = {}
    for name, method in methods.items():
        model = tiny_dit(seed=ord(name))
        relcache.enable(model, method)
        alone[name] = run_loop(model, steps=STEPS)

    models = {name: tiny_dit(seed=ord(name)) for name in methods}
    handles = {name: relcache.enable(models[name], method) for name, method in methods.items()}
    labels = torch.tensor([3, 5])
    noise = noise_for([0, 1])

    def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
        return torch.cat(
            [
                models[name](part, timestep=timestep.expand(2), class_labels=labels).sample
                for name, part in zip(models, sample.chunk(2), strict=True)
            ]
        )

    together = ddim(denoise, torch.cat([noise, noise]), STEPS).chunk(2)
    for name, picture in zip(models, together, strict=True):
        assert torch.equal(picture, alone[name])
        assert handles[name].report().steps == STEPS


def test_a_copy_of_an_enabled_model_is_plain(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, METHOD)
    cached = run_loop(model, steps=STEPS)
    double = copy.deepcopy(model)
    assert torch.equal(run_loop(double, steps=STEPS), plain_picture())
    assert handle.report().steps == STEPS
    assert torch.equal(run_loop(model, steps=STEPS), cached), "the copy's run did not disturb the original's cache"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run_loop(double, steps=STEPS), plain_picture()), "the copy computes with its own weights"


def test_a_copy_can_be_enabled_and_disabled(model: DiTTransformer2DModel) -> None:
    relcache.enable(model, METHOD)
    double = copy.deepcopy(model)
    with relcache.enable(double, FORA(3)) as handle:
        run_loop(double, steps=STEPS)
        assert handle.report().full_steps == [0, 1, 4, 7]
    assert torch.equal(run_loop(double, steps=STEPS), plain_picture())


def test_a_copy_keeps_a_forward_that_was_there_before(model: DiTTransformer2DModel) -> None:
    """A method bound to the instance is copied with it, as it would be without relcache."""

    def halved(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return type(self).forward(self, *args, **kwargs) / 2

    block = model.transformer_blocks[0]
    block.ff.forward = types.MethodType(halved, block.ff)
    expected = run_loop(copy.deepcopy(model), steps=STEPS)
    relcache.enable(model, METHOD)
    assert torch.equal(run_loop(copy.deepcopy(model), steps=STEPS), expected)


def test_another_wrapper_behind_ours_stays(model: DiTTransformer2DModel) -> None:
    """Another wrapper around the replacement stays, with a warning; the replacement only calls the original."""
    handle = relcache.enable(model, METHOD)
    attention = model.transformer_blocks[0].attn1
    ours, calls = attention.forward, []

    def theirs(*args: Any, **kwargs: Any) -> Tensor:
        calls.append("theirs")
        return ours(*args, **kwargs)

    attention.forward = theirs
    run_loop(model, steps=STEPS)
    with pytest.warns(UserWarning, match="was replaced by other code"):
        handle.disable()
    assert attention.forward is theirs
    calls.clear()
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())
    assert len(calls) == STEPS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle.disable()


def test_a_model_is_freed_after_disable() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    handle.disable()
    alive = weakref.ref(model)
    del model, handle
    gc.collect()
    assert alive() is None


def test_a_model_is_freed_while_enabled() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    alive = weakref.ref(model)
    del model, handle
    gc.collect()
    assert alive() is None


def test_a_pipeline_is_freed_while_its_transformer_is_enabled() -> None:
    pipeline = tiny_pipeline()
    transformer = pipeline.transformer
    handle = relcache.enable(pipeline, METHOD)
    run_pipeline(pipeline, [3], STEPS)
    alive = weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert alive() is None
    assert torch.equal(run_loop(transformer, steps=STEPS), run_loop(transformer, steps=STEPS))
    assert handle.report().full_steps == [0, 1, 5, 9]


def test_caching_lasts_when_the_handle_is_dropped(model: DiTTransformer2DModel) -> None:
    relcache.enable(model, METHOD)
    gc.collect()
    assert not torch.equal(run_loop(model, steps=STEPS), plain_picture())


def test_disable_frees_the_cache(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    session = handle._session
    held = [weakref.ref(tensor) for branch in session.cache.request.branches.values() for tensor in branch.tensors()]
    assert held
    handle.disable()
    gc.collect()
    assert [reference for reference in held if reference() is not None] == []


def test_an_active_cache_of_diffusers_is_an_error(model_with_context: DiTTransformer2DModel) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    model_with_context.enable_cache(config)
    with pytest.raises(
        ValueError, match=r"cache of diffusers active \(PyramidAttentionBroadcastConfig\).*disable_cache"
    ):
        relcache.enable(model_with_context, METHOD)
    model_with_context.disable_cache()
    assert relcache.enable(model_with_context, METHOD).enabled


def test_an_enabled_model_cannot_be_pickled_and_says_why(model: DiTTransformer2DModel, tmp_path: Any) -> None:
    handle = relcache.enable(model, METHOD)
    with pytest.raises(TypeError, match=r"call disable\(\)"):
        torch.save(model, tmp_path / "model.pt")
    handle.disable()
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(run_loop(again, steps=STEPS), plain_picture())


def test_an_enabled_model_saves_its_weights(model: DiTTransformer2DModel, tmp_path: Any) -> None:
    names = set(model.state_dict())
    relcache.enable(model, METHOD)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    again = DiTTransformer2DModel.from_pretrained(tmp_path)
    assert relative_error(run_loop(again.eval(), steps=STEPS), plain_picture()) < 1e-6


def test_the_handle_shows_what_it_is(pipeline: DiTPipeline) -> None:
    handle = relcache.enable(pipeline, METHOD)
    assert repr(handle) == "<relcache taylorseer:order=2,interval=4 on DiTTransformer2DModel, 4 units, enabled>"
    assert handle.units == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.0.ff",
        "transformer_blocks.1.attn1",
        "transformer_blocks.1.ff",
    ]
    handle.disable()
    assert repr(handle).endswith("disabled>")


def test_a_handle_kept_for_its_report_does_not_keep_the_model() -> None:
    model = tiny_dit()
    handle = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    flops = handle.report().flops
    handle.disable()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert handle.report().nfc > 0
    assert handle.report().flops == flops  # counted while the model was there


def test_disable_finds_the_handle_of_a_transformer(model: DiTTransformer2DModel) -> None:
    assert not relcache.disable(model), "none is enabled"
    handle = relcache.enable(model, METHOD)
    run_loop(model, steps=STEPS)
    assert relcache.disable(model)
    assert not handle.enabled
    assert torch.equal(run_loop(model, steps=STEPS), plain_picture())
    assert handle.report().full_steps == [0, 1, 5, 9]
    assert not relcache.disable(model), "a second call does nothing"
    handle.disable()


def test_disable_finds_the_handle_of_a_pipeline() -> None:
    """By the pipeline, by its transformer, by a wrapper of that, and by another pipeline that shares it."""
    pipeline, untouched = tiny_pipeline(), tiny_pipeline()
    other = DiTPipeline(pipeline.transformer, pipeline.vae, pipeline.scheduler)
    there = relcache.enable(untouched, METHOD)
    for target in (pipeline, pipeline.transformer, torch.compile(pipeline.transformer, backend="eager"), other):
        relcache.enable(pipeline, METHOD)  # the handle is dropped
        assert relcache.disable(target)
        assert not relcache.disable(pipeline)
    handle = relcache.enable(pipeline, METHOD)
    pipeline.transformer = tiny_dit()
    assert relcache.disable(pipeline), "that it was enabled on"
    assert not handle.enabled
    assert there.enabled


@pytest.mark.parametrize("value", [None, "flux", DiTPipeline])
def test_disable_refuses_other_values(value: Any) -> None:
    with pytest.raises(TypeError, match="disable takes a pipeline or its transformer, got"):
        relcache.disable(value)
