"""Every mistake gets an error that names it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from tiny import run_loop, run_pipeline
from torch import nn

import relcache
from relcache import (
    FORA,
    RCS,
    RFC,
    RFE,
    ErrorBudget,
    Interval,
    Linear,
    Method,
    ModelSpec,
    Newton,
    Plan,
    Relational,
    Taylor,
    TaylorSeer,
    method_from_config,
    method_from_text,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relational(0), "order of Relational is a whole number of at least 1, got 0.*Reuse"),
        (lambda: Relational(-1), "order of Relational.*got -1"),
        (lambda: Relational(1.5), r"order of Relational.*got 1\.5"),
        (lambda: RFC(order=0), "order of Relational.*got 0"),
        (lambda: RFE(0, interval=4), "order of Relational.*got 0"),
        (
            lambda: Relational(1, direction="tailor"),
            "direction of Relational is one of 'taylor', 'newton', got 'tailor'",
        ),
        (lambda: Relational(1, norm="batch"), "norm of Relational is one of 'sample', 'tensor', got 'batch'"),
        (lambda: RFC(norm="samples"), "norm of ErrorBudget is one of 'sample', 'tensor', got 'samples'"),
        (lambda: Taylor(-1), "order of an expansion is a whole number of at least 0, got -1"),
        (lambda: TaylorSeer(-2, interval=4), "order of an expansion.*got -2"),
        (lambda: Newton(1.0), r"order of an expansion.*got 1\.0"),
        (lambda: Linear(float("nan")), "weight of Linear is a finite number, got nan"),
        (lambda: ErrorBudget(-0.1), r"threshold of ErrorBudget is a finite number of at least 0, got -0\.1"),
        (lambda: RFC(threshold=-1), "threshold of ErrorBudget.*got -1"),
        (lambda: RCS(1, threshold=float("inf")), "threshold of ErrorBudget.*got inf"),
        (lambda: ErrorBudget(float("nan")), "threshold of ErrorBudget.*got nan"),
        (lambda: ErrorBudget("0.1"), r"threshold of ErrorBudget.*got '0\.1'"),
        (lambda: ErrorBudget(0.1, warmup=0), "warmup of ErrorBudget is a whole number of at least 1, got 0"),
        (lambda: ErrorBudget(0.1, longest_gap=0), "longest_gap of ErrorBudget.*at least 1, got 0"),
        (lambda: ErrorBudget(0.1, full_last=-1), "full_last of ErrorBudget.*at least 0, got -1"),
        (lambda: Interval(0), "interval of Interval is a whole number of at least 1, got 0"),
        (lambda: FORA(0), "interval of Interval.*got 0"),
        (lambda: FORA(-3), "interval of Interval.*got -3"),
        (lambda: Interval(2.5), r"interval of Interval.*got 2\.5"),
        (lambda: Interval(4, warmup=0), "warmup of Interval.*at least 1, got 0"),
        (lambda: Interval(4, warmup=2, phase=1), "phase of Interval.*at least 2, got 1"),
        (lambda: Plan([]), "at least one full step, got none"),
        (lambda: Plan([0, 0, 3]), r"each full step once, got \[0, 0, 3\]"),
        (lambda: Plan([-1, 0]), "full step of a Plan.*at least 0, got -1"),
        (lambda: Plan([0, 2.5]), r"full step of a Plan.*got 2\.5"),
    ],
)
def test_options_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"method": "rfc", "treshold": 0.1}, "unknown option of rfc 'treshold': did you mean 'threshold'"),
        ({"method": "fora", "intervall": 4}, "unknown option of fora 'intervall': did you mean 'interval'"),
        ({"method": "rfe", "order": 1, "interval": 4, "direktion": "newton"}, "did you mean 'direction'"),
        ({"method": "tailorseer", "order": 1}, "unknown method 'tailorseer': did you mean 'taylorseer'"),
        ({"method": "teacache"}, "unknown method 'teacache'.*there are auto, full, fora"),
        ({"order": 1}, "has the key 'method'"),
        ({"method": "taylorseer", "order": 1}, "taylorseer needs interval"),
        ({"method": "rcs"}, "rcs needs order, threshold"),
        ({"method": "rfc", "order": 0}, "order of Relational.*got 0"),
        ({"method": "fora", "interval": 0}, "interval of Interval.*got 0"),
    ],
)
def test_configs_that_make_no_sense(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_from_config(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rfc:order", "'order' in 'rfc:order' is not of the form option=value"),
        ("rfc:ordre=2", "did you mean 'order'"),
        ("newtonn", "unknown method 'newtonn': did you mean 'newton'"),
        ("", "unknown method ''"),
        ("fora:interval=four", "interval of Interval.*got 'four'"),
        ("fora:interval=", "interval of Interval.*got ''"),
    ],
)
def test_texts_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method_from_text(text)


def test_a_method_of_something_else() -> None:
    with pytest.raises(TypeError, match="forecaster is a relcache Forecaster, got int"):
        Method(3, Interval(4))
    with pytest.raises(TypeError, match="schedule is a relcache Schedule, got Taylor"):
        Method(Taylor(1), Taylor(1))
    with pytest.raises(ValueError, match="has no threshold: its schedule is Interval"):
        FORA(4).with_threshold(0.1)


def test_a_model_without_a_spec() -> None:
    with pytest.raises(ValueError, match=r"no spec for Linear; it knows \d+ transformers.*spec=.*relcache\.inspect"):
        relcache.enable(nn.Linear(2, 2), FORA(4))


def test_a_spec_without_a_matching_module(model: DiTTransformer2DModel) -> None:
    """The message names what was looked for and what there is."""
    spec = ModelSpec("DiTTransformer2DModel", ("transformer_blocks.*.attention",))
    message = r"looks for modules named 'transformer_blocks\.\*\.attention' and DiTTransformer2DModel has none.*attn1"
    with pytest.raises(ValueError, match=message):
        relcache.enable(model, FORA(4), spec=spec)
    assert "forward" not in model.__dict__


def test_one_pattern_of_two_that_matches_nothing(model: DiTTransformer2DModel) -> None:
    spec = ModelSpec("DiTTransformer2DModel", ("transformer_blocks.*.attn1", "transformer_blocks.*.mlp"))
    with pytest.raises(ValueError, match=r"'transformer_blocks\.\*\.mlp'"):
        relcache.enable(model, FORA(4), spec=spec)


def test_a_transformer_without_any_block() -> None:
    """A DiT of no blocks has the class's name and nothing to cache."""
    empty = DiTTransformer2DModel(num_attention_heads=1, attention_head_dim=4, num_layers=0, sample_size=4)
    with pytest.raises(ValueError, match="DiTTransformer2DModel has none"):
        relcache.enable(empty, FORA(4))


def test_specs_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="spec of Thing names no modules"):
        ModelSpec("Thing", ())
    with pytest.raises(ValueError, match=r"time_runs is -1.*got 0"):
        ModelSpec("Thing", ("blocks.*",), time_runs=0)


def test_a_module_that_returns_no_tensor(model: DiTTransformer2DModel) -> None:
    """A spec that names a module with several outputs cannot be served."""
    relcache.enable(model, FORA(4), spec=ModelSpec("DiTTransformer2DModel", ("transformer_blocks.*.norm1",)))
    with pytest.raises(TypeError, match=r"transformer_blocks\.0\.norm1 returned tuple of Tensor.*joint"):
        run_loop(model)


def test_full_last_without_a_number_of_steps(pipeline: DiTPipeline) -> None:
    method = RFC(2, threshold=100.0, full_last=2)
    relcache.enable(pipeline.transformer, method)
    with pytest.raises(ValueError, match=r"full_last=2 needs the number of steps.*num_inference_steps"):
        run_loop(pipeline.transformer)
    handle = relcache.enable(pipeline, method)
    run_pipeline(pipeline, [3], steps=8)
    assert handle.report().full_steps == [0, 1, 6, 7]


@pytest.mark.parametrize("steps", [0, -1, 2.5, "50"])
def test_a_number_of_steps_that_is_none(steps: Any, model: DiTTransformer2DModel) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps is a whole number of at least 1, got {steps!r}"):
        relcache.enable(model, FORA(4), num_inference_steps=steps)


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("a path", "got str: it has no transformer"),
        (None, "got NoneType: it has no transformer"),
        (SimpleNamespace(unet=nn.Linear(1, 1)), "it has a UNet, not a transformer"),
        (SimpleNamespace(transformer=None), "it has no transformer"),
    ],
)
def test_enabling_something_else(thing: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        relcache.enable(thing, FORA(4))


def test_enabling_by_something_else_than_a_method(model: DiTTransformer2DModel) -> None:
    with pytest.raises(TypeError, match="a schedule needs a forecaster"):
        relcache.enable(model, schedule=Interval(4))
    with pytest.raises(TypeError, match="not both"):
        relcache.enable(model, FORA(4), schedule=Interval(4))
    with pytest.raises(TypeError, match=r"the method is relcache\.auto.*got 4"):
        relcache.enable(model, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown method .rfd.*rfc"):
        relcache.enable(model, "rfd:order=2")
    with pytest.raises(ValueError, match=r"full_steps does not go with FORA.*forecaster="):
        relcache.enable(model, FORA(4), full_steps=5)
    with pytest.raises(ValueError, match="either full_steps or speedup"):
        relcache.enable(model, full_steps=5, speedup=2.0)
    assert "forward" not in model.__dict__


def test_a_call_without_its_timestep(model: DiTTransformer2DModel) -> None:
    relcache.enable(model, FORA(4))
    with pytest.raises(ValueError, match="called without its argument 'timestep', which identifies the denoising step"):
        model(torch.zeros(1, 4, 8, 8), class_labels=torch.tensor([1]))
