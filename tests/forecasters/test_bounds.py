"""Numbers that grow without bound in the papers' formulas: bounded or fallen back, and counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from scripted import play, rows
from tiny import noise_for, run_loop, timesteps_for, tiny_dit
from torch import Tensor

import relcache
from relcache import FORA, RCS, RFC, RFE, Interval, Linear, Method, Newton, Plan, Relational, Taylor, TaylorSeer
from relcache.forecasters.base import within_type
from relcache.forecasters.expansion import LIMIT, Expansion

PLAIN = "input moved too far for what it did before: plain expansion"
LONG = "forecast too long: shortened"
NEAR_THE_END = "forecast near the end of float16: shortened"
CLAMPED = "input and change of a block beyond float16: clamped"


def noise(count: int, rows: int = 2) -> list[Tensor]:
    return [torch.randn(rows, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Growth with the gap


@pytest.mark.parametrize("forecaster", [Taylor(1), Taylor(2), Taylor(3), Newton(1), Newton(3), Linear(2.0)], ids=repr)
def test_a_long_stretch_stays_within_a_multiple_of_the_feature(forecaster: Any) -> None:
    """Order 3 would be 10⁵ times the feature after 50 cached steps, where features do not move smoothly."""
    full = forecaster.expansion.order + 1
    features = noise(full + 50)
    got, report = play(Method(forecaster, Plan(range(full))), [rows(1.0, 1.0)] * len(features), features)
    newest, change = features[full - 1], features[full - 1] - features[full - 2]
    most = LIMIT * (newest.flatten(1).norm(dim=1) + change.flatten(1).norm(dim=1))
    for output in got[full:]:
        added = (output - newest).flatten(1).norm(dim=1)
        assert bool((added <= most * 1.0001).all())
    assert report.fallbacks.keys() == {LONG}
    assert 0 < report.fallbacks[LONG] < 2 * 50


@pytest.mark.parametrize("form", [Taylor, Newton])
def test_a_smooth_feature_is_extrapolated_over_a_long_stretch(form: Any) -> None:
    """What is within the bounds is what it would be without them."""
    features = [rows(10 + step + 0.01 * step**2) for step in range(60)]
    got, report = play(Method(form(2), Plan([0, 1, 2])), [rows(1.0)] * 60, features)
    for step in range(3, 60):
        k = step - 2
        first, second = 1.03, 0.02
        expected = 12.04 + first * k + second * (k**2 / 2 if form is Taylor else k * (k + 1) / 2)
        torch.testing.assert_close(got[step], rows(expected), rtol=1e-4, atol=1e-4)
    assert report.fallbacks == {}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["taylor", "newton"])
def test_whether_a_forecast_may_stray_is_known_from_its_weights(form: Any, order: int) -> None:
    """The greatest forecast of features of size 1 is the sum of the absolute weights: bounded by `LIMIT`, or told."""
    expansion = Expansion(order, form)
    for steps in ((3, 2, 1, 0), (9, 5, 4, 1), (12, 3, 2, 1), (12, 11, 2, 0)):
        for step in range(steps[0] + 1, steps[0] + 12):
            coefficients, weights = expansion.coefficients(steps, step), []
            for unit in range(order + 1):
                stack = None
                for place in range(order, -1, -1):
                    value = torch.tensor([[float(place == unit)]], dtype=torch.float64)
                    stack = expansion.extend(stack, steps[place:], value)
                assert stack is not None
                terms = stack.flatten().tolist()
                weights.append(terms[0] + sum(c * d for c, d in zip(coefficients, terms[1:], strict=True)))
            total = sum(map(abs, weights))
            assert expansion.may_stray(steps, coefficients) == (total > LIMIT), (steps, step, total)


def test_usual_gaps_do_not_stray() -> None:
    for interval in range(2, 10):
        steps = (1 + 2 * interval, 1 + interval, 1)
        for step in range(steps[0] + 1, steps[0] + interval):
            for order in (1, 2):
                expansion = Expansion(order)
                assert not expansion.may_stray(steps, expansion.coefficients(steps, step))


def test_a_sample_that_strays_leaves_its_mates_alone() -> None:
    """The second sample's features jump, the first one's are smooth."""
    smooth = [torch.full((1, 6, 8), 10.0 + step) for step in range(40)]
    both = [torch.cat([a, b[:1]]) for a, b in zip(smooth, noise(40), strict=True)]
    method = Method(Taylor(2), Plan([0, 1, 2]))
    alone, _ = play(method, [rows(1.0)] * 40, smooth)
    together, report = play(method, [rows(1.0, 1.0)] * 40, both)
    assert all(torch.equal(a, b[:1]) for a, b in zip(alone, together, strict=True))
    assert 0 < report.fallbacks[LONG] <= 37


@pytest.mark.parametrize("options", [{}, {"cache_dtype": "int8"}, {"cache_dtype": "float8"}, {"granularity": "block"},
                                     {"granularity": "stack"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("method", [Method(Taylor(3), Plan(range(4))), Method(Relational(3), Plan(range(4)))],
                         ids=lambda method: method.forecaster.__class__.__name__)  # fmt: skip
@pytest.mark.parametrize("compiled", [False, True])
def test_a_transformer_over_a_long_stretch(method: Method, options: dict[str, Any], compiled: bool) -> None:
    """50 cached steps of a random model, whose sample moves on by itself."""
    if compiled and "granularity" not in options:
        options = options | {"granularity": "block"}
    model = tiny_dit()
    if compiled:
        model.compile(backend="eager")
    seen: list[float] = []
    if not compiled:
        model.transformer_blocks[-1].register_forward_hook(lambda *a: seen.append(float(a[-1].norm())))
    handle = relcache.enable(model, method, **options)
    picture = run_loop(model, steps=54)
    assert bool(picture.isfinite().all())
    if not compiled and "granularity" not in options:
        assert max(seen[4:]) < 100 * max(seen[:4])
    assert handle.report().full_steps == [0, 1, 2, 3]
    assert (handle.report().fallbacks.get(LONG, 0) > 0) == isinstance(method.forecaster, Taylor)


# An input that hardly moved between the full steps


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("direction", ["taylor", "newton"])
@pytest.mark.parametrize("step", [1e-10, 1e-5, 5e-3])
def test_an_input_that_hardly_moved_before(order: int, direction: Any, step: float) -> None:
    """‖I - I₀‖ / ‖ΔI‖ of 10¹⁰ says nothing about the magnitude; the second sample moves as it should."""
    inputs = [rows(1.0, 1.0), rows(1.0 + step, 2.0), rows(2.0 + step, 3.5)]
    outputs = [rows(2.0, 2.0), rows(3.0, 3.0), rows(99.0, 99.0)]
    double = [[value.double() for value in values] for values in (inputs, outputs)]
    double[0][1][0] = 1.0 + step
    double[0][2][0] = 2.0 + step
    got, report = play(Method(Relational(order, direction), Plan([0, 1])), *double)
    torch.testing.assert_close(got[2], rows(4.0, 4.5).double())
    assert report.fallbacks == {PLAIN: 1}


def test_an_input_that_moved_far_is_followed_within_the_bound() -> None:
    """A ratio of 99 between small outputs is the paper's; what is longer than 16 times the feature is not taken."""
    inputs, small = [rows(0.0), rows(1.0), rows(100.0)], [rows(100.0), rows(101.0), rows(0.0)]
    got, report = play(Method(Relational(1), Plan([0, 1])), inputs, small)
    torch.testing.assert_close(got[2], rows(200.0))
    assert report.fallbacks == {}
    got, report = play(Method(Relational(1), Plan([0, 1])), inputs, [rows(1.0), rows(2.0), rows(0.0)])
    torch.testing.assert_close(got[2], rows(3.0))
    assert report.fallbacks == {PLAIN: 1}


# The end of a type


@pytest.mark.parametrize("method", [Method(Taylor(1), Plan([0, 1])), Method(Taylor(2), Plan([0, 1, 2])),
    Method(Newton(2), Plan([0, 1, 2])), Method(Relational(1), Plan([0, 1])), Method(Relational(2), Plan([0, 1, 2])),
    Method(Linear(), Plan([0, 1]))], ids=lambda method: repr(method.forecaster))  # fmt: skip
def test_features_near_the_end_of_float16(method: Method) -> None:
    """Differences of finite features are greater than any feature; a mate whose features are small is untouched."""
    large, mate = [6e4, -5e4, 6e4, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]
    inputs = [rows(float(step), float(step)).half() for step in range(6)]
    outputs = [torch.cat([rows(a), rows(b)]).half() for a, b in zip(large, mate, strict=True)]
    got, report = play(method, inputs, outputs)
    alone, _ = play(method, [given[1:] for given in inputs], [output[1:] for output in outputs])
    full = method.forecaster.expansion.order + 1
    for step in range(full, 6):
        assert bool(got[step].isfinite().all())
        assert torch.equal(got[step][1:], alone[step])
    assert report.fallbacks == {NEAR_THE_END: 6 - full}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("order", [1, 2])
def test_features_whose_squares_run_over(order: int, dtype: torch.dtype) -> None:
    """A Gram matrix beyond float32 tells no length: the plain expansion, and a mate that is untouched."""
    inputs = [rows(float(step), float(step)).to(dtype) for step in range(5)]
    outputs = [rows(1e30 * (1 + step), 1.0 + step).to(dtype) for step in range(5)]
    got, report = play(Method(Relational(order), Plan(range(order + 1))), inputs, outputs)
    for step in range(order + 1, 5):
        torch.testing.assert_close(got[step], outputs[step], rtol=1e-2, atol=0)
    assert report.fallbacks == {PLAIN: 4 - order}


def scaled(scale: float, kind: Any = DiTTransformer2DModel) -> DiTTransformer2DModel:
    """A DiT in float16 the first feed-forward of which returns large features, as FLUX's and SD3's do."""
    model = tiny_dit(kind=kind)
    with torch.no_grad():
        model.transformer_blocks[0].ff.net[2].weight.mul_(scale)
        model.transformer_blocks[0].ff.net[2].bias.mul_(scale)
    return model.half()


@torch.no_grad()
def call_fast(model: DiTTransformer2DModel, scales: tuple[float, float] = (1.0, 1.0), steps: int = 16) -> Tensor:
    """Outputs along samples that move fast, one factor for each sample."""
    first, second, times = noise_for([0, 1]).half(), noise_for([2, 3]).half(), timesteps_for(steps)
    outputs = []
    for step in range(steps):
        sample = math.cos(0.2 * step) * first + math.sin(0.2 * step) * second
        sample = sample * torch.tensor(scales).half().reshape(2, 1, 1, 1)
        outputs.append(model(sample, timestep=times[step].expand(2), class_labels=torch.tensor([3, 5])).sample)
    return torch.stack(outputs)


METHODS = [
    FORA(4),
    TaylorSeer(1, interval=4),
    TaylorSeer(2, interval=4),
    TaylorSeer(3, interval=4),
    RFE(1, interval=4),
    RFE(2, interval=4),
    RFC(2, threshold=1.5),
    RCS(2, threshold=1.5),
    Method(Newton(2), Interval(4)),
    Method(Relational(2, "newton"), Interval(4)),
]


@pytest.mark.parametrize("options", [{}, {"cache_dtype": "int8"}, {"cache_dtype": "float8"}, {"granularity": "block"},
                                     {"granularity": "stack"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name} {method.forecaster}")
def test_a_transformer_in_float16(method: Method, options: dict[str, Any]) -> None:
    """Finite where full compute is, and counted where it took something."""
    model = scaled(1e3)
    plain = call_fast(model)
    assert bool(plain.isfinite().all())
    with relcache.enable(model, method, **options) as handle:
        outputs = call_fast(model)
        report = handle.report()
    assert bool(outputs.isfinite().all()), [step for step in range(16) if not outputs[step].isfinite().all()]
    if method.forecaster.expansion.order and not options:
        assert report.fallbacks[NEAR_THE_END] > 0


def test_a_compiled_transformer_in_float16() -> None:
    for method in (TaylorSeer(2, interval=4), RFE(2, interval=4)):
        model = scaled(1e3)
        model.compile(backend="eager")
        with relcache.enable(model, method) as handle:
            outputs = call_fast(model)
            assert bool(outputs.isfinite().all())
            assert handle.report().fallbacks[NEAR_THE_END] > 0


def test_usual_features_in_float16_are_not_touched() -> None:
    model = tiny_dit().half()
    for method in (TaylorSeer(2, interval=4), RFE(2, interval=4)):
        with relcache.enable(model, method) as handle:
            call_fast(model)
            assert handle.report().fallbacks == {}


def test_a_block_whose_change_is_beyond_float16() -> None:
    """From -6·10⁴ to 6·10⁴ is further than float16 goes: clamped and counted, not infinite."""
    got, code = within_type(torch.tensor([[6e4], [1.0]]).half() - torch.tensor([[-6e4], [0.5]]).half())
    assert got.tolist() == [[65504.0], [0.5]]
    assert code is not None
    assert code.tolist() == [6, 0]
    wide = torch.tensor([[6e4]]) * 1e30
    assert within_type(wide) == (wide, None)
