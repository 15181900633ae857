"""Calls that look alike: told apart, or computed in full with a note."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from requesting import STEPS, every_method, options_of, run
from small_pipelines import (
    flux,
    flux_transformer,
    stable_diffusion_3,
)
from tiny import DiTWithContext, noise_for, timesteps_for, tiny_dit
from torch import Tensor

import relcache
from relcache import FORA, Method, TaylorSeer


@every_method
def test_windows_whose_order_changes(method: Method) -> None:
    """Two windows of one clip, told apart by nothing but their samples, first the one and then the other."""
    pipe, call = stable_diffusion_3()

    def windows(pipe: Any, orders: list[tuple[int, int]]) -> list[Tensor]:
        plain, outs, step = pipe.transformer, [], 0
        inside = False

        def around(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            nonlocal inside, step
            if inside:
                return
            inside = True
            for window in orders[step]:
                hidden = kwargs["hidden_states"].flip(-1) * 0.8 if window else kwargs["hidden_states"].roll(3, -2)
                outs.append((window, plain(*args, **{**kwargs, "hidden_states": hidden})[0]))
            inside, step = False, step + 1

        hook = plain.register_forward_hook(around, with_kwargs=True)
        run(pipe, {**call, "guidance_scale": 1.0}, steps=len(orders))
        hook.remove()
        return [out for _, out in sorted(outs, key=lambda one: one[0])]

    fixed = [(0, 1)] * 24
    changing = [(0, 1), (1, 0), (1, 0), (0, 1), (1, 0), (0, 1)] * 4
    results = []
    for orders in (fixed, changing):
        with relcache.enable(pipe, method) as handle:
            results.append(windows(pipe, orders))
            assert len(handle.report().branches) == 3
            assert not handle.report().notes
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_equal_prompts_are_not_told_apart() -> None:
    """Guidance between two equal prompts is none, and a forecast must not be amplified by it."""
    pipe, call = flux(diffusers.FluxImg2ImgPipeline)
    options = {**options_of(pipe), "strength": 1.0, "true_cfg_scale": 4.0, "negative_prompt": call["prompt"]}
    full = run(pipe, call, **options)
    handle = relcache.enable(pipe, FORA(4))
    with pytest.warns(UserWarning, match="nothing tells the two calls apart"):
        cached = run(pipe, call, **options)
    assert torch.equal(cached, full)
    assert handle.report().nfc == STEPS


def test_a_controlnet_in_one_of_two_calls() -> None:
    """With and without its residuals, at one timestep and on one sample: two branches."""
    model = flux_transformer()
    generator = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 5, 16, generator=generator), torch.randn(1, 16, generator=generator)
    x = torch.randn(1, 6, 16, generator=generator)
    residuals = [torch.randn(1, 6, 32, generator=generator) for _ in range(2)]
    handle = relcache.enable(model, TaylorSeer(1, interval=3))
    with torch.no_grad():
        for step, t in enumerate(torch.linspace(1, 0.1, STEPS)):
            for control in (None, [residual * (1 - step / 20) for residual in residuals]):
                out = model(
                    x, timestep=t[None].clone(), encoder_hidden_states=text, pooled_projections=pooled,
                    guidance=torch.ones(1), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
                    controlnet_block_samples=control,
                )[0]  # fmt: skip
            x = x - 0.05 * out
    assert (handle.report().steps, len(handle.report().branches)) == (STEPS, 2)
    assert not handle.report().notes


@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_a_controlnet_that_ends_is_noticed(granularity: Any) -> None:
    """After its last step its residuals are zeros: what was cached with it is not used any longer."""
    base, call = flux()
    torch.manual_seed(0)
    control = diffusers.FluxControlNetModel.from_transformer(
        base.transformer, attention_head_dim=16, num_attention_heads=2, num_layers=1, num_single_layers=1
    )
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    pipe = diffusers.FluxControlNetPipeline(controlnet=control.eval(), **base.components)
    options = {"control_image": torch.rand(1, 3, 16, 24), "control_guidance_end": 0.5}
    with relcache.enable(pipe, FORA(5), granularity=granularity) as handle:
        run(pipe, call, steps=20, **options)
        assert handle.full_steps == [0, 1, 6, 10, 11, 16]


def test_a_prompt_that_changes_under_one_context() -> None:
    """The name of a branch stands; what it is conditioned on does not, and features of the old prompt are not used."""
    model, plain = tiny_dit(kind=DiTWithContext), tiny_dit(kind=DiTWithContext)
    relcache.enable(model, FORA(8, warmup=1))
    sample = noise_for([0, 1])
    outs: dict[str, list[Tensor]] = {"cached": [], "plain": []}
    with torch.no_grad():
        for step, time in enumerate(timesteps_for(STEPS).float()):
            for name, transformer in (("cached", model), ("plain", plain)):
                labels = torch.full((2,), 3 if step < 4 else 7)
                with transformer.cache_context("cond"):
                    outs[name].append(transformer(sample, timestep=time.expand(2), class_labels=labels).sample)
    equal = [torch.equal(a, b) for a, b in zip(outs["cached"], outs["plain"], strict=True)]
    assert equal == [True, False, False, False, True, False, False, False, True, False]
