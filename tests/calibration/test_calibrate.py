"""A calibration finds the full steps for one model, scheduler and budget, and says what it cannot calibrate."""

from __future__ import annotations

import itertools
import json
import random
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import CopyingPipeline, tiny_dit, tiny_pipeline
from typer.testing import CliRunner

import relcache
from relcache import RFC, Preset
from relcache.calibration import calibrate
from relcache.calibration.probe import between_updates
from relcache.calibration.table import Errors, neighbours
from relcache.calibration.trials import Trials, decibels
from relcache.cli.app import app

CALLS = [{"class_labels": [3]}, {"class_labels": [5]}]
STEPS = 12


def run(pipe: Any, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made = pipe(class_labels=[3], num_inference_steps=steps, generator=generator, output_type="np").images
    return torch.as_tensor(made)


def test_the_cheapest_plan_is_the_shortest_path() -> None:
    """Against all plans that there are."""
    draw = random.Random(0)
    for steps, full, history in itertools.product((5, 7, 9), (2, 3, 4), (1, 2)):
        places = range(steps)
        errors = Errors(
            steps,
            {length: {end: draw.random() * length**2 for end in places} for length in (2, 4)},
            {end: draw.random() * end**2 for end in places},
            {last: draw.random() * (steps - last) for last in places},
            {step: 1 + draw.random() * (steps - step) for step in places},
            history,
        )

        def cost(plan: tuple[int, ...], errors: Errors = errors) -> float:
            return sum(map(errors.cost, plan, plan[1:])) + errors.tail(plan[-1])

        begin = tuple(range(history))
        plans = [(*begin, *rest) for rest in itertools.combinations(range(history, steps), full - history)]
        assert errors.cheapest(full) == min(plans, key=cost)


def test_costs_between_those_that_were_measured() -> None:
    errors = Errors(20, {2: {4: 1.0, 8: 4.0}, 8: {4: 64.0, 8: 256.0}}, {3: 7.0}, {10: 2.0, 14: 8.0}, {1: 1.0, 19: 1.0})
    assert errors.cost(2, 4) == pytest.approx(1.0)
    assert errors.cost(4, 6) == pytest.approx(2.0)  # midway between the logarithms of 1 and 4
    assert errors.cost(4, 8) == pytest.approx(32.0)  # a power of the length: 4 and 256 at 2 and 8
    assert errors.cost(3, 4) == 0.0
    assert errors.cost(0, 3) == 7.0
    assert errors.tail(12) == pytest.approx(4.0)
    assert errors.tail(19) == 0.0
    assert errors.tail(18) == 8.0


def test_neighbours() -> None:
    assert set(neighbours((0, 2), 5)) == {(0, 1), (0, 3), (0, 4)}
    assert {plan[:2] for plan in neighbours((0, 1, 5), 8, history=2)} == {(0, 1)}
    around = neighbours((0, 3, 5), 8)
    assert (0, 2, 4) in around
    assert (0, 2, 5) in around
    assert all(plan[0] == 0 and plan[-1] < 8 and len(set(plan)) == 3 for plan in around)


def test_decibels() -> None:
    reference = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert decibels([reference], [reference]) == 100.0
    assert decibels([reference + 0.1], [reference]) == pytest.approx(20.0, abs=1e-4)
    assert decibels([10 * reference - 5 + 1.0], [10 * reference - 5]) == pytest.approx(20.0, abs=1e-4)
    assert decibels([reference * torch.nan], [reference]) == -100.0
    wide = torch.rand(4, 7)
    assert decibels([reference, wide + 0.1], [reference, wide]) == pytest.approx((2 * 100 + 4 * 20) / 6, abs=1e-3)


def test_what_is_between_updates() -> None:
    """A pipeline goes on from the sample that is put back, and is as before afterwards."""
    pipe, seen, samples = tiny_pipeline(), [], []
    with between_updates(pipe.scheduler, lambda step, sample: seen.append(step)) as updates:
        expected = run(pipe)
    assert seen == list(range(STEPS))
    assert updates.count == STEPS
    assert "step" not in vars(pipe.scheduler)

    def zero(step: int, sample: torch.Tensor) -> torch.Tensor | None:
        samples.append(sample)
        return torch.zeros_like(sample) if step == 4 else None

    with between_updates(pipe.scheduler, zero):
        assert not torch.equal(run(pipe), expected)
    assert not samples[4].any()
    assert torch.equal(run(pipe), expected)


@pytest.mark.parametrize("method", [None, RFC(2, threshold=0.2), "taylorseer:order=1,interval=4"], ids=str)
def test_a_plan_is_found(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of exactly so many steps, no worse than Growing's on what it was judged on; and it goes on where it was left."""
    pipe, told = tiny_pipeline(), []
    options: dict[str, Any] = {
        "num_inference_steps": STEPS, "method": method, "trials": 8, "progress": tmp_path / "progress.json",
    }  # fmt: skip
    parts = 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal parts
        parts += 1
        if parts == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, CALLS, 4, **options, tell=stop)
    kept = json.loads((tmp_path / "progress.json").read_text())["parts"]
    assert len(kept) == 7
    preset = calibrate(pipe, CALLS, 4, **options, tell=lambda *parts: told.append(parts))
    assert json.loads((tmp_path / "progress.json").read_text())["parts"].items() >= kept.items()
    assert {what.split(":")[0] for what, _, _ in told} >= {"full compute", "errors of gaps", "gains of errors"}
    assert all(done <= total for _, done, total in told)
    assert len(preset.full_steps) == 4
    assert preset.judged["plan"] >= preset.judged["growing"]
    assert preset.judged["samples"] == 2
    assert preset.judged["trials"] <= 8
    assert "step" not in vars(pipe.scheduler)
    with relcache.enable(pipe, preset) as handle:
        made = torch.cat([run_call(pipe, call, seed) for seed, call in enumerate(CALLS)])
        assert handle.full_steps == list(preset.full_steps)
    exact = torch.cat([run_call(pipe, call, seed) for seed, call in enumerate(CALLS)])
    assert decibels([made], [exact]) == pytest.approx(preset.judged["plan"])
    monkeypatch.setattr(Trials, "_with_plan", None)  # nothing is run again but full compute
    assert calibrate(pipe, CALLS, 4, **options) == preset
    with pytest.raises(ValueError, match="belongs to another model, method or budget: delete it"):
        calibrate(pipe, CALLS, 5, **options)
    with pytest.raises(ValueError, match="belongs to other weights, calls or seeds: delete it"):
        calibrate(pipe, CALLS[:1], 4, **options)
    with pytest.raises(ValueError, match="belongs to other weights, calls or seeds: delete it"):
        calibrate(tiny_pipeline(seed=1), CALLS, 4, **options)


def run_call(pipe: Any, call: dict[str, Any], seed: int, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for schedulers that draw from the global generator
    made = pipe(**call, num_inference_steps=steps, generator=generator, output_type="np").images
    return torch.as_tensor(made)


def test_updates_that_are_not_the_pipelines_own() -> None:
    """Where another scheduler makes the updates, nothing is measured on the way, and pictures alone decide."""

    pipe, told = CopyingPipeline(**tiny_pipeline().components), []
    pipe.set_progress_bar_config(disable=True)
    preset = calibrate(
        pipe, CALLS, 4, num_inference_steps=STEPS, trials=5, tell=lambda what, *_: told.append(what.split(":")[0])
    )
    assert set(told) == {"full compute", "trials"}
    assert len(preset.full_steps) == 4


@pytest.mark.parametrize("method", [None, "taylorseer:order=1,interval=4"], ids=["auto", "taylorseer"])
def test_every_budget_of_short_requests(method: Any) -> None:
    """However little there is to measure."""
    pipe = tiny_pipeline()
    for steps in (2, 3, 4, 5, 7):
        for full in range(1 if method is None else 2, steps):
            preset = calibrate(pipe, CALLS[:1], full, num_inference_steps=steps, method=method, trials=3)
            assert len(preset.full_steps) == full
            with relcache.enable(pipe, preset) as handle:
                run_call(pipe, CALLS[0], 0, steps)
                assert handle.full_steps == list(preset.full_steps)


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "PNDMScheduler", "DDPMScheduler"])
def test_schedulers_of_other_numbers_of_steps_and_of_chance(scheduler: str) -> None:
    """A preset is of the steps that are made, not of those asked for, and is judged by what it then makes."""
    pipe = tiny_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler)(num_train_timesteps=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chance: gaps are not corrected
        preset = calibrate(pipe, CALLS, 4, num_inference_steps=STEPS, trials=3)
        with relcache.enable(pipe, preset) as handle:
            made = [run_call(pipe, call, seed) for seed, call in enumerate(CALLS)]
            assert handle.full_steps == list(preset.full_steps)
            assert handle.report().steps == preset.steps
            assert not any("same fractions" in note for note in handle.report().notes)
    exact = [run_call(pipe, call, seed) for seed, call in enumerate(CALLS)]
    assert decibels(made, exact) == pytest.approx(preset.judged["plan"])


def test_what_is_at_work_already() -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, RFC(2, threshold=0.2)) as handle:
        with pytest.raises(ValueError, match="relcache is enabled on this pipeline: call disable"):
            calibrate(pipe, CALLS, 4, num_inference_steps=STEPS)
        assert handle.enabled
    pipe.transformer.is_cache_enabled = True
    with pytest.raises(ValueError, match="already has a cache of diffusers active"):
        calibrate(pipe, CALLS, 4, num_inference_steps=STEPS)


def test_pictures_that_are_not_finite() -> None:
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="pictures that are not finite"):
        calibrate(pipe, CALLS, 4, num_inference_steps=STEPS)


@pytest.mark.parametrize(
    ("calls", "full", "more", "complaint"),
    [
        ([], 4, {}, "needs at least one call"),
        ([{"class_labels": [1], "generator": None}], 4, {}, "generator is set by calibrate"),
        (CALLS, STEPS, {}, "nothing is left to calibrate: 12 full steps of 12"),
        (CALLS, 0, {}, "full_steps is a whole number of at least 1"),
        (CALLS, 1, {"method": "rfc"}, "needs 2 full steps, and the budget is 1"),
        (CALLS, 4, {"trials": -1}, "trials is a whole number of at least 0"),
        (CALLS, 4, {"method": "auto:finer=2"}, "neither a preset nor finer"),
        (["a cat"], 4, {}, "calls is a list of dicts of arguments"),
        (CALLS[0], 4, {}, "calls is a list of dicts of arguments"),
        (CALLS, 4, {"num_inference_steps": "12"}, "num_inference_steps is a whole number of at least 2"),
        (CALLS, 4, {"progress": "/"}, "progress cannot be kept in /"),
    ],
)
def test_what_cannot_be_calibrated(calls: Any, full: int, more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        calibrate(tiny_pipeline(), calls, full, **{"num_inference_steps": STEPS, **more})


def test_calibrate_takes_a_pipeline() -> None:
    with pytest.raises(TypeError, match="takes a diffusers pipeline, got DiTTransformer2DModel"):
        calibrate(tiny_dit(), CALLS, 4)


# The command


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    few = ["--steps", "8", "--samples", "2", "--trials", "2"]
    code, output = command("calibrate", "--full-steps", "4", *few, "--out", str(out))
    assert code == 0, output
    assert f"Written to {out}; {tmp_path / 'mine.progress.json'} holds the measurements" in output
    preset = Preset.load(out)
    assert preset.steps == 8
    assert f"full steps: {', '.join(map(str, preset.full_steps))}" in output
    code, output = command(
        "sample", "--classes", "1", "--steps", "8", "--method", f"preset:name={out}", "--out", str(tmp_path / "made")
    )
    assert code == 0, output
    assert json.loads((tmp_path / "made/report.json").read_text())[0]["full_steps"] == list(preset.full_steps)
    code, output = command("presets", str(out))
    assert code == 0
    assert "mine.json" in output.replace("\n", "")
    assert "small-flux-8" in output
    code, output = command("sample", "--model", "small-flux", "--prompt", "a big red ball", "--method",
                           f"preset:name={out}", "--out", str(tmp_path / "made"))  # fmt: skip
    assert code == 1
    assert "the preset is for DiTTransformer2DModel, not FluxTransformer2DModel" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give --nfc for a threshold, or --full-steps for a plan"),
        (["--nfc", "4", "--full-steps", "4"], "give --nfc for a threshold, or --full-steps for a plan"),
        (["--nfc", "4", "--out", "x.json"], "--out is the file for a plan"),
        (["--full-steps", "50"], "--full-steps takes 1 to 49"),
        (["--full-steps", "4", "--method", "rfcc"], "did you mean 'rfc'?"),
        (["--full-steps", "4", "--out", "."], "is a folder"),
    ],
)
def test_mistakes_at_the_command(arguments: list[str], complaint: str) -> None:
    code, output = command("calibrate", *arguments)
    assert code == 1
    assert complaint in output.replace("\n", " ")
