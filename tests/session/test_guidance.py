"""Guidance in all its forms: each branch has a cache of its own, whatever tells it from the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import diffusers
import pytest
import torch
from diffusers import LayerSkipConfig
from diffusers.guiders import PerturbedAttentionGuidance, SkipLayerGuidance
from diffusers.models.cache_utils import CacheMixin
from small_pipelines import Built, flux, pixart, qwen_image, stable_diffusion_3, wan
from torch import Tensor, nn

import relcache
from relcache import RFC, Plan, Relational

STEPS = 8
PLAN = Plan([0, 1, 4])
PICTURE = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(5))


def run(built: Built, steps: int = STEPS, **options: Any) -> Tensor:
    pipe, call = built
    pipe.set_progress_bar_config(disable=True)
    call = {**call, "num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), **options}
    return torch.as_tensor(pipe(**call, output_type="latent", return_dict=False)[0])


def flux_without_context() -> tuple[Built, dict[str, Any]]:
    built = flux(diffusers.FluxImg2ImgPipeline)
    return built, {"image": PICTURE, "strength": 1.0, "true_cfg_scale": 2.0, "negative_prompt": "blurred"}


# Pipelines that call the transformer more than once a step: the arguments, and the branches there must be.
GUIDED: dict[str, tuple[Callable[[], tuple[Built, dict[str, Any]]], list[str]]] = {
    "two calls under cache_context": (
        lambda: (flux(), {"true_cfg_scale": 2.0, "negative_prompt": "blurred"}),
        ["cond", "uncond"],
    ),
    "two calls under cache_context, Wan": (lambda: (wan(), {}), ["cond", "uncond"]),
    "two calls without": (flux_without_context, ["0", "1"]),
    "a third call that skips layers": (
        lambda: (
            stable_diffusion_3(),
            {
                "skip_guidance_layers": [1],
                "skip_layer_guidance_start": -1.0,
                "skip_layer_guidance_stop": 1.0,
            },
        ),
        ["0", "1"],
    ),
}


@pytest.mark.parametrize("form", GUIDED)
def test_branches_are_told_apart(form: str) -> None:
    make, branches = GUIDED[form]
    built, options = make()
    full = run(built, **options)
    with relcache.enable(built[0], forecaster=Relational(1), schedule=PLAN) as handle:
        cached = run(built, **options)
        report = handle.report()
    assert report.branches == branches
    assert report.steps == STEPS
    assert report.full_steps == [0, 1, 4]
    assert not report.notes
    assert bool(torch.isfinite(cached).all())
    assert not torch.equal(cached, full)
    assert torch.equal(run(built, **options), full)


def outputs_by_branch(form: str, poisoned: int | None) -> dict[int, list[Tensor]]:
    """What the transformer returns for each branch, on the same samples whatever the other branch returned before.

    At step 4, which is full, the cache of the branch `poisoned` is filled with rubbish.
    """
    make, branches = GUIDED[form]
    built, options = make()
    handle = relcache.enable(built[0], forecaster=Relational(1), schedule=PLAN)
    generator, seen = torch.Generator().manual_seed(1), []

    def same_sample(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "hidden_states": torch.randn(kwargs["hidden_states"].shape, generator=generator)}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(output[0])
        request = handle._session.cache.request
        if poisoned is not None and request.step == 4 and len(seen) % 2 == 0:
            for tensor in request.branches[branches[poisoned]].tensors():
                if tensor.is_floating_point():
                    tensor.data.fill_(1e3)

    built[0].transformer.register_forward_pre_hook(same_sample, with_kwargs=True, prepend=True)
    built[0].transformer.register_forward_hook(note, with_kwargs=True)
    run(built, **options)
    assert len(seen) == 2 * STEPS
    assert handle.report().branches == branches
    return {branch: seen[branch::2] for branch in range(2)}


@pytest.mark.parametrize("poisoned", [0, 1])
@pytest.mark.parametrize("form", GUIDED)
def test_a_poisoned_branch_leaves_the_other_alone(form: str, poisoned: int) -> None:
    """What the cache of one branch holds does not reach what the transformer returns for the other."""
    clean, spoilt = outputs_by_branch(form, None), outputs_by_branch(form, poisoned)
    other = 1 - poisoned
    assert all(torch.equal(a, b) for a, b in zip(clean[other], spoilt[other], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(clean[poisoned], spoilt[poisoned], strict=True))


SKIPPED_LAYER = LayerSkipConfig([0], fqn="transformer_blocks")
PERTURBED = LayerSkipConfig([0], "transformer_blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False)
GUIDERS = {
    "skip-layer": lambda: SkipLayerGuidance(
        skip_layer_config=SKIPPED_LAYER, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    ),
    "perturbed attention": lambda: PerturbedAttentionGuidance(
        perturbed_guidance_config=PERTURBED, perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0
    ),
}


@pytest.mark.parametrize("guider", GUIDERS)
@pytest.mark.parametrize("context", [True, False])
@torch.no_grad()
def test_guiders(guider: str, context: bool) -> None:
    """The loop that diffusers' modular pipelines make around a guider, with and without cache_context."""
    transformer = pixart()[0].transformer
    if context:
        transformer.__class__ = type("PixArtTransformer2DModel", (type(transformer), CacheMixin), {})
    text = torch.randn(2, 1, 5, 16)
    handle = relcache.enable(transformer, forecaster=Relational(1), schedule=PLAN)
    guide, sample = GUIDERS[guider](), torch.randn(1, 4, 8, 8)
    for step, timestep in enumerate(torch.linspace(900, 100, STEPS)):
        guide.set_state(step=step, num_inference_steps=STEPS, timestep=timestep)
        states = guide.prepare_inputs({"encoder_hidden_states": tuple(text)})
        for state in states:
            guide.prepare_models(transformer)
            name = getattr(state, guide._identifier_key)
            with transformer.cache_context(name) if context else nullcontext():
                state.noise_pred = transformer(
                    sample, encoder_hidden_states=state.encoder_hidden_states, timestep=timestep[None]
                )[0]
            state.noise_pred = state.noise_pred.chunk(2, dim=1)[0]
            guide.cleanup_models(transformer)
        sample = sample - 0.05 * guide(states)[0]
    report = handle.report()
    assert report.steps == STEPS
    assert report.full_steps == [0, 1, 4]
    assert report.branches == (["pred_cond", "pred_uncond", "pred_cond_skip"] if context else ["0", "1", "2"])
    assert bool(torch.isfinite(sample).all())


def test_two_tiles_of_one_picture() -> None:
    """Nothing but the sample tells the calls apart: each tile has a branch of its own, and neither is the other's."""
    pipe, call = qwen_image()
    call = {**call, "true_cfg_scale": 1.0}
    plain = pipe.transformer
    again: list[Tensor] = []
    inside = False

    def second_tile(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal inside
        if inside:
            return
        inside = True
        again.append(plain(*args, **{**kwargs, "hidden_states": kwargs["hidden_states"].flip(1)})[0])
        inside = False

    hook = plain.register_forward_hook(second_tile, with_kwargs=True)
    full = run((pipe, call))
    tiles = list(again)
    again.clear()
    hook.remove()
    with relcache.enable(pipe, RFC(1, threshold=1e9)) as handle:
        alone = run((pipe, call)), handle.report().full_steps
    with relcache.enable(pipe, RFC(1, threshold=1e9)) as handle:
        plain.register_forward_hook(second_tile, with_kwargs=True)  # behind relcache's own
        first = run((pipe, call))
        report = handle.report()
    assert (report.steps, report.full_steps) == (STEPS, [0, 1])
    assert (torch.equal(first, alone[0]), alone[1]) == (True, [0, 1])
    assert len(report.branches) == 2
    assert not report.notes
    assert len(again) == len(tiles) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(again[:2], tiles[:2], strict=True)), "the samples are still the same"
    assert not torch.equal(first, full)
