"""What a report says is what happened: FLOPs, bytes, full steps, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import (
    DiTPipeline,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
)
from tiny import call_along, run_guided, run_loop, run_pipeline, timesteps_for, tiny_dit, trajectory

import relcache
from relcache import FORA, RFC, RFE, Always, Method, Relational, Reuse, Size, TaylorSeer
from relcache.models import SPECS, spec_for

STEPS = 12


@pytest.fixture(scope="module")
def dit_xl() -> DiTTransformer2DModel:
    """DiT-XL/2 for 256 x 256 pictures, without weights."""
    with torch.device("meta"):
        return DiTTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32
        )


def xl_inputs(rows: int) -> dict[str, torch.Tensor]:
    labels = torch.zeros(rows, dtype=torch.int64, device="meta")
    return {
        "hidden_states": torch.empty(rows, 4, 32, 32, device="meta"),
        "timestep": labels.clone(),
        "class_labels": labels,
    }


def test_dit_xl_has_56_modules(dit_xl: DiTTransformer2DModel) -> None:
    units = spec_for(dit_xl, SPECS).units(dit_xl)
    assert len(units) == 56
    assert [unit.name for unit in units[:3]] == [
        "transformer_blocks.0.attn1",
        "transformer_blocks.0.ff",
        "transformer_blocks.1.attn1",
    ]
    assert units[-1].name == "transformer_blocks.27.ff"
    assert all(unit.modules == {unit.name: dit_xl.get_submodule(unit.name)} for unit in units)


def test_published_flops_of_dit_xl(dit_xl: DiTTransformer2DModel) -> None:
    """50 steps with guidance: 23.74 T."""
    assert 50 * relcache.count_flops(dit_xl, **xl_inputs(2)) == pytest.approx(23.74e12, rel=0.01)


def test_flops_without_attention_products(dit_xl: DiTTransformer2DModel) -> None:
    """Scores and values: 2 products of 2 · tokens² · width in each of 28 blocks."""
    both = relcache.count_flops(dit_xl, **xl_inputs(1)), relcache.count_flops(dit_xl, **xl_inputs(1), attention=False)
    assert both[0] - both[1] == 28 * 2 * 2 * 256 * 256 * 1152


def test_flops_are_linear_in_the_batch(dit_xl: DiTTransformer2DModel) -> None:
    assert relcache.count_flops(dit_xl, **xl_inputs(6)) == 3 * relcache.count_flops(dit_xl, **xl_inputs(2))


def module_flops(rows: int, tokens: int = 16, width: int = 16) -> int:
    """Attention (four projections, two products) and feed-forward (factor 4) of one block, by hand."""
    attention = 4 * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width
    feed_forward = 2 * 2 * tokens * width * 4 * width
    return rows * (attention + feed_forward)


@pytest.mark.parametrize(
    "method", [FORA(4), TaylorSeer(2, interval=3), RFC(2, threshold=0.8)], ids=lambda method: method.name
)
def test_flops_of_a_request(method: Method, model: DiTTransformer2DModel) -> None:
    """Full steps cost a forward, cached ones a forward less its modules."""
    forward = relcache.count_flops(
        model, torch.randn(2, 4, 8, 8), timestep=torch.tensor([1, 1]), class_labels=torch.tensor([1, 1])
    )
    handle = relcache.enable(model, method)
    run_loop(model, steps=STEPS)
    report = handle.report()
    assert report.full_flops == STEPS * forward
    assert report.flops == STEPS * forward - (STEPS - report.nfc) * 2 * module_flops(rows=2)


def test_flops_with_two_branches(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, FORA(4))
    run_loop(model, steps=STEPS)
    once = handle.report()
    run_guided(model, STEPS)
    twice = handle.report()
    assert (twice.flops, twice.full_flops) == (2 * once.flops, 2 * once.full_flops)


def test_flops_of_full_compute(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, forecaster=Reuse(), schedule=Always())
    run_loop(model, steps=STEPS)
    assert handle.report().flops == handle.report().full_flops


def test_reporting_does_not_disturb_a_request(model: DiTTransformer2DModel) -> None:
    """Counting runs the model on the meta device; a report between two steps changes nothing."""
    samples = {"cond": range(STEPS), "uncond": range(STEPS)}
    expected_model = tiny_dit()
    relcache.enable(expected_model, RFE(2, interval=4))
    expected = call_along(expected_model, trajectory(STEPS), samples)
    handle = relcache.enable(model, RFE(2, interval=4))
    outputs = call_along(model, trajectory(STEPS), samples, after=lambda step, branch: str(handle.report()))
    for branch in samples:
        assert all(torch.equal(a, b) for a, b in zip(outputs[branch], expected[branch], strict=True))
    assert handle.report().steps == STEPS


FEATURE = 2 * 16 * 16 * 4  # bytes: 2 samples, 16 tokens, 16 channels, float32
MODULES = 4


def test_cache_bytes_of_reuse(model: DiTTransformer2DModel) -> None:
    """One output of each module."""
    handle = relcache.enable(model, FORA(4))
    run_loop(model, steps=STEPS)
    assert handle.report().cache_bytes == MODULES * FEATURE


def test_cache_bytes_of_taylor(model: DiTTransformer2DModel) -> None:
    """Order 2: an output and two differences."""
    handle = relcache.enable(model, TaylorSeer(2, interval=4))
    run_loop(model, steps=STEPS)
    assert handle.report().cache_bytes == MODULES * 3 * FEATURE


# What Relational keeps of 2 samples beside features, at order 2: 1 / ‖ΔI‖ (float32), s and the Gram matrix
# (float64), and one byte each for whether ‖ΔI‖ is zero and for the fall-back.
SMALL = 2 * (4 + 8 + 2 * 2 * 8 + 1 + 1)


def test_cache_bytes_of_relational(model: DiTTransformer2DModel) -> None:
    """Order 2: an output, two differences, the last input, and some numbers per sample."""
    handle = relcache.enable(model, RFE(2, interval=4))
    run_loop(model, steps=STEPS)
    assert handle.report().cache_bytes == MODULES * (4 * FEATURE + SMALL)


def test_cache_bytes_of_the_error_signal(model: DiTTransformer2DModel) -> None:
    """The first module's input adds its two differences; the input itself is held once, not twice."""
    handle = relcache.enable(model, RFC(2, threshold=0.8))
    run_loop(model, steps=STEPS)
    assert handle.report().cache_bytes == MODULES * (4 * FEATURE + SMALL) + 2 * FEATURE


def test_cache_bytes_of_two_branches(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, TaylorSeer(2, interval=4))
    run_guided(model, STEPS)
    assert handle.report().cache_bytes == 2 * MODULES * 3 * FEATURE


def test_cache_takes_the_features_dtype(model: DiTTransformer2DModel) -> None:
    model.to(torch.bfloat16)
    handle = relcache.enable(model, TaylorSeer(2, interval=4))
    with torch.no_grad():
        for timestep in timesteps_for(STEPS):
            sample = torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16)
            model(sample, timestep=timestep.expand(2), class_labels=torch.tensor([1, 2]))
    assert handle.report().cache_bytes == MODULES * 3 * FEATURE // 2


def test_report_of_a_request(pipeline: DiTPipeline) -> None:
    handle = relcache.enable(pipeline, RFC(2, threshold=0.8))
    run_pipeline(pipeline, [3, 5], STEPS)
    report = handle.report()
    assert report.method == handle.method == "rfc:threshold=0.8"
    assert report.model == "DiTTransformer2DModel"
    assert report.units == MODULES
    assert report.steps == STEPS == len(report.signal)
    assert report.nfc == len(report.full_steps)
    assert report.signal[:2] == [None, None]
    assert all(error is not None and error > 0 for error in report.signal[2:])
    assert report.batch == 4


def test_report_becomes_json(pipeline: DiTPipeline) -> None:
    handle = relcache.enable(pipeline, RFC(2, threshold=0.8, warmup=1))
    run_pipeline(pipeline, [3], STEPS)
    report = handle.report()
    again = json.loads(json.dumps(report.to_dict()))
    assert again == report.to_dict()
    assert relcache.Report(**again) == report
    assert {"full_steps", "nfc", "steps", "flops", "full_flops", "cache_bytes", "signal", "fallbacks"} <= set(again)


def test_report_as_text(pipeline: DiTPipeline) -> None:
    handle = relcache.enable(pipeline, RFC(2, threshold=0.8, warmup=1))
    run_pipeline(pipeline, [3], STEPS)
    report = handle.report()
    text = str(report)
    for fact in (
        "rfc:threshold=0.8,warmup=1",
        "DiTTransformer2DModel, 4 units",
        f"{report.nfc} full of {STEPS}",
        " ".join(map(str, report.full_steps)),
        f"{report.flops / report.full_flops:.1%}",
        "kB",
        f"{STEPS - 1}:{report.signal[-1]:.3g}",
        "too few full steps yet: full step: 1",
    ):
        assert fact in text


def test_report_before_any_request(model: DiTTransformer2DModel) -> None:
    report = relcache.enable(model, FORA(4)).report()
    assert (report.steps, report.nfc, report.full_steps, report.flops) == (0, 0, [], None)
    assert str(report) == "fora:interval=4 on DiTTransformer2DModel: no request yet"
    assert json.loads(json.dumps(report.to_dict()))["cache_bytes"] == 0


def test_report_is_of_the_last_request(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, FORA(4))
    run_loop(model, steps=20)
    run_loop(model, torch.tensor([4]), steps=6)
    report = handle.report()
    assert (report.steps, report.full_steps, report.batch) == (6, [0, 1, 5], 1)


def test_report_while_a_request_runs(model: DiTTransformer2DModel) -> None:
    handle = relcache.enable(model, forecaster=Relational(1), schedule=relcache.Interval(3))
    with torch.no_grad():
        for step, timestep in enumerate(timesteps_for(STEPS)[:6]):
            model(torch.randn(1, 4, 8, 8), timestep=timestep[None], class_labels=torch.tensor([1]))
            assert handle.report().steps == step + 1
    assert handle.report().full_steps == [0, 1, 4]


@pytest.mark.parametrize(
    ("kind", "size", "published"),
    [(FluxTransformer2DModel, Size(1, 124, 124, text=512), 2813.5),
     (HunyuanVideoTransformer3DModel, Size(1, 60, 80, 9, 256), 7520.0)],
    ids=["FLUX.1 dev at 992 x 992", "HunyuanVideo at 480 x 640 x 33"],
)  # fmt: skip
def test_published_flops(kind: type[Any], size: Size, published: float) -> None:
    """Linear layers only, as the paper counts; the attention products come on top."""
    with torch.device("meta"):
        model = kind(guidance_embeds=True)
    inputs = spec_for(model, SPECS).example(model, size)
    linear = 50 * relcache.count_flops(model, attention=False, **inputs)
    assert linear == pytest.approx(published * 1e12, rel=0.01)
    assert 50 * relcache.count_flops(model, **inputs) > 1.2 * linear
