"""NaN in the weights or the latents: one sentence that says whose they are, and no wait in between."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from scripted import SPEC, ScriptedTransformer, rows
from tiny import call_along, ddim, noise_for, run_loop, run_pipeline, tiny_dit, tiny_pipeline, trajectory
from torch import Tensor

import relcache
from relcache import FORA, RFC, RFE, Method, Plan, TaylorSeer

OWN, FORECAST = "the model's own output was NaN or infinite at step", "the output was NaN or infinite at step"
METHODS = [FORA(4), TaylorSeer(2, interval=4), RFE(2, interval=4), RFC(2, threshold=0.5)]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def spoil(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.transformer_blocks[1].ff.net[2].weight[0, 0] = math.nan


def said(caught: list[Any], text: str) -> list[str]:
    return [str(warning.message) for warning in caught if text in str(warning.message)]


@each_method
@pytest.mark.parametrize("options", [{}, {"granularity": "stack"}, {"cache_dtype": "int8"}], ids=str)
def test_weights(method: Method, options: dict[str, Any]) -> None:
    """Said once, when the report is asked for; the picture is as without relcache."""
    model = tiny_dit()
    spoil(model)
    plain = run_loop(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handle = relcache.enable(model, method, **options)
        picture = run_loop(model)
        assert said(caught, OWN) == []
        report = handle.report()
        handle.report()
    assert len(said(caught, f"{OWN} 0,")) == 1
    assert len([note for note in report.notes if f"{OWN} 0," in note]) == 1
    assert torch.equal(picture.isnan(), plain.isnan())


def test_the_end_of_a_pipelines_request() -> None:
    """The last step is known: the sentence comes with the black picture."""
    pipeline = tiny_pipeline()
    relcache.enable(pipeline, TaylorSeer(1, interval=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_pipeline(pipeline, [3])
    spoil(pipeline.transformer)
    with pytest.warns(UserWarning, match=OWN):
        run_pipeline(pipeline, [3])


def test_the_number_of_steps_tells_a_loops_end() -> None:
    model = tiny_dit()
    relcache.enable(model, TaylorSeer(1, interval=4), num_inference_steps=12)
    spoil(model)
    with pytest.warns(UserWarning, match=OWN):
        run_loop(model, steps=12)


@pytest.mark.parametrize("then", ["request", "disable"])
def test_what_comes_after_a_request_says_it(then: str) -> None:
    model = tiny_dit()
    spoil(model)
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_loop(model)
        assert said(caught, OWN) == []
    with pytest.warns(UserWarning, match=OWN):
        run_loop(model) if then == "request" else handle.disable()


@each_method
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_of_one_sample(method: Method, bad: float) -> None:
    """Its mate's picture is what it would be beside a good one; a schedule that cannot decide computes in full."""
    model, labels = tiny_dit(), torch.tensor([3, 5])

    def run(spoilt: bool) -> Tensor:
        def denoise(step: int, sample: Tensor, timestep: Tensor) -> Tensor:
            if spoilt and step >= 1:
                sample = torch.cat([sample[:1], torch.full_like(sample[1:], bad)])
            return model(sample, timestep=timestep.expand(2), class_labels=labels).sample

        return ddim(denoise, noise_for([0, 1]), 12)

    full = run(False)
    with relcache.enable(model, method) as handle:
        good = run(False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spoilt = run(True)
            report = handle.report()
    assert said(caught, f"{OWN} 1,")
    assert any(OWN in note for note in report.notes)
    decides = method.schedule.needs_signal
    torch.testing.assert_close(spoilt[:1], full[:1] if decides else good[:1], rtol=1e-5, atol=1e-5)
    assert not decides or report.fallbacks["signal not finite: full step"] > 0


def test_a_branch_of_its_own() -> None:
    """The weights are good; what one branch is given is not."""
    model = tiny_dit()
    handle = relcache.enable(model, TaylorSeer(1, interval=4))
    samples = trajectory(8)
    samples[5, 0, 0, 0, 0] = math.nan
    call_along(model, samples, {"cond": range(8), "uncond": range(8)})
    with pytest.warns(UserWarning, match=f"{OWN} 5,"):
        handle.report()


def test_a_forecast_that_runs_over_is_told_from_the_models_own() -> None:
    """A gate behind the forecast, far from anything that full steps have seen."""

    class Gated(ScriptedTransformer):
        gate = 1.0

        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            return self.blocks[0](hidden_states) * self.gate

    model = Gated().eval()
    handle = relcache.enable(model, Method(TaylorSeer(1, interval=4).forecaster, Plan([0, 1])), spec=SPEC)
    with torch.no_grad():
        for step in range(4):
            model.blocks[0].present, model.gate = rows(1.0 + step), 1.0 if step < 2 else math.inf
            model(rows(1.0), torch.tensor([1000.0 - step]))
    with pytest.warns(UserWarning, match=f"{FORECAST} 2, whose modules were forecast"):
        handle.report()


@each_method
def test_nothing_is_said_of_finite_outputs(method: Method) -> None:
    model = tiny_dit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with relcache.enable(model, method, num_inference_steps=12) as handle:
            run_loop(model)
            assert handle.report().notes == []
