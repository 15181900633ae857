"""Plans for one model and scheduler: found, saved, loaded, refused elsewhere, spread over another number of steps."""

from __future__ import annotations

import copy
import itertools
import json
import random
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import CopyingPipeline, run_loop, tiny_dit, tiny_pipeline
from typer.testing import CliRunner

import relcache
from relcache import RFC, Plan, Preset, Replay, Taylor
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.calibration import calibrate
from relcache.calibration.probe import between_updates
from relcache.calibration.table import Errors, neighbours
from relcache.calibration.trials import Trials, decibels
from relcache.cli.app import app
from relcache.models.origin import Component, Origin
from relcache.presets import shipped
from relcache.schedules.growing import growing_steps
from relcache.schedules.plan import resampled

CALLS = [{"class_labels": [3]}, {"class_labels": [5]}]
STEPS = 12


def run(pipe: Any, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made = pipe(class_labels=[3], num_inference_steps=steps, generator=generator, output_type="np").images
    return torch.as_tensor(made)


def preset_of(pipe: Any, full_steps: tuple[int, ...] = (0, 1, 4, 8), **more: Any) -> Preset:
    origin = Origin.of({"transformer": pipe.transformer}, pipe.scheduler)
    return Preset(origin, STEPS, full_steps, relcache.auto(), **more)


# A plan of another number of steps


def test_a_plan_of_another_number_of_steps() -> None:
    """The same number of full steps, each at one of its own, at the same shares of the way."""
    assert resampled((0, 1, 4, 8), 12, 12) == (0, 1, 4, 8)
    assert resampled((0, 2, 7, 11, 18, 27, 36, 47), 50, 99) == (0, 4, 14, 22, 36, 54, 72, 94)
    plan = growing_steps(50, 14, 1.7)
    for wanted in (*range(1, 80), 200, 1000):
        steps = resampled(plan, 50, wanted)
        assert len(steps) == min(wanted, 14)
        assert list(steps) == sorted(set(steps))
        assert steps[0] == 0
        assert steps[-1] < wanted
        if wanted > 100:
            assert all(abs(a / (wanted - 1) - b / 49) < 0.02 for a, b in zip(steps, plan, strict=True))
    with pytest.raises(ValueError, match="total_steps of a Plan is a whole number of at least 9, got 8"):
        Plan((0, 1, 4, 8), 8)


def test_a_preset_in_requests_of_other_lengths() -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, preset_of(pipe)) as handle:
        run(pipe)
        assert handle.full_steps == [0, 1, 4, 8]
        assert handle.report().notes == []
        run(pipe, 23)
        assert handle.full_steps == [0, 2, 8, 16]
        assert "the Plan is for 12 steps: its full steps are moved to the same fractions" in "".join(
            handle.report().notes
        )
        run(pipe, 3)
        assert handle.full_steps == [0, 1, 2]
    model = tiny_dit()
    relcache.enable(model, forecaster=Taylor(1), schedule=Plan((0, 1, 4), STEPS))
    with pytest.raises(ValueError, match="a Plan of 12 steps needs the number of steps"):
        run_loop(model, steps=STEPS)


# Files


def test_a_preset_is_the_same_after_saving(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    preset = preset_of(pipe, date="2026-01-02", judged={"samples": 2, "plan": 30.0, "growing": 29.0})
    preset.save(tmp_path / "folder" / "mine.json")
    again = Preset.load(tmp_path / "folder" / "mine.json")
    assert again.to_dict() == preset.to_dict()
    assert again.method.forecaster == relcache.auto().forecaster
    assert again.method.corrector == Replay()
    assert again.method.granularity == "stack"
    expected = run_with(pipe, preset)
    assert torch.equal(run_with(pipe, f"preset:name={tmp_path / 'folder' / 'mine.json'}"), expected)
    assert torch.equal(run_with(pipe, again), expected)


def run_with(pipe: Any, method: Any) -> torch.Tensor:
    with relcache.enable(pipe, method):
        return run(pipe)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "it has version 2, and this relcache reads version 1"),
        ({"forecaster": {"name": "Taylr"}}, "no 'Taylr'; it has"),
        ({"forecaster": {"name": "Taylor", "order": -1}}, "order of an expansion"),
        ({"corrector": {"name": "Replay", "sharpness": 1}}, "sharpness"),
        ({"full_steps": []}, "at least one full step"),
        ({"steps": 6}, "at least 9, got 6"),
        ({"steps": None}, "its 'steps' has the wrong type"),
        ({"models": {}}, "it names no model"),
        ({"models": {"transformer": {"class": "X", "config": None}}}, "its 'config' has the wrong type"),
        ({"forecaster": "Taylor"}, "its 'forecaster' has the wrong type"),
        ({"forecaster": {"order": 1}}, "it has no 'name'"),
        ({"judged": {"plan": None}}, "its 'plan' has the wrong type"),
        ({"judged": 5}, "its 'judged' has the wrong type"),
        ({"date": 3}, "its 'date' has the wrong type"),
        ({"memory_limit": "much"}, "memory"),
        ({"offload": "disk"}, "offload is one of"),
        ({"models": ["transformer"]}, "its 'models' has the wrong type"),
    ],
)
def test_a_file_that_is_no_preset(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({**preset_of(tiny_pipeline()).to_dict(), **change}))
    with pytest.raises(ValueError, match=rf"broken\.json is no preset.*{complaint}"):
        Preset.load(path)


def test_files_that_are_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no preset 'small-flux-9'.*did you mean 'small-flux-8'\?"):
        relcache.enable(tiny_pipeline(), "preset:name=small-flux-9")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match=r"text\.json is no preset"):
        Preset.named(str(tmp_path / "text.json"))
    table = preset_of(tiny_pipeline()).to_dict()
    del table["scheduler"]
    (tmp_path / "less.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"less\.json is no preset: it has no 'scheduler'"):
        Preset.load(tmp_path / "less.json")


def test_a_forecaster_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    class Mine(Taylor):
        pass

    pipe = tiny_pipeline()
    base = relcache.Method(Mine(1), Plan([0]))
    preset = Preset(preset_of(pipe).origin, STEPS, (0, 1), base)
    with pytest.raises(ValueError, match="holds forecasters and correctors of relcache"):
        preset.save(tmp_path / "mine.json")
    with pytest.raises(ValueError, match="holds forecasters and correctors of relcache"):
        calibrate(pipe, CALLS, 4, num_inference_steps=STEPS, method=base)


# Another model or scheduler


def test_another_model_or_scheduler_is_refused() -> None:
    pipe = tiny_pipeline()
    preset = preset_of(pipe)
    other = tiny_pipeline(blocks=3)
    with pytest.raises(ValueError, match="the preset is for DiTTransformer2DModel with num_layers=2, not 3"):
        relcache.enable(other, preset)
    assert "forward" not in vars(other.transformer)
    for scheduler, complaint in (
        (diffusers.DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=1), "steps_offset=its default, not 1"),
        (diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config), "DDIMScheduler, not EulerDiscrete"),
    ):
        other = tiny_pipeline()
        other.scheduler = scheduler
        with pytest.raises(ValueError, match=complaint):
            relcache.enable(other, preset)
    with pytest.raises(ValueError, match="pass the scheduler= that the loop steps"):
        relcache.enable(pipe.transformer, preset)
    scheduler = copy.deepcopy(pipe.scheduler)
    with relcache.enable(pipe.transformer, preset, scheduler=scheduler, num_inference_steps=STEPS) as handle:
        assert handle.method == "preset"
    two = Origin({"transformer": preset.origin.models["transformer"], "transformer_2": Component("X", {})},
                 preset.origin.scheduler)  # fmt: skip
    with pytest.raises(ValueError, match="is for a pipeline with transformer and transformer_2; this one has tran"):
        relcache.enable(pipe, Preset(two, STEPS, (0, 1), relcache.auto()))


def test_configs_of_other_versions() -> None:
    """An option that another version of diffusers has does not tell models apart, as long as it is as usual."""

    class Model:
        def __init__(self, layers: int, new: bool = False, sizes: tuple[int, ...] = (1, 2)) -> None:
            self.config = {"layers": layers, "new": new, "sizes": sizes, "_name_or_path": "x"}

    plain = Component("Model", {"layers": 2})
    assert Component.of(Model(2)) == plain
    assert Component.of(Model(2, sizes=(1, 3))).config == {"layers": 2, "sizes": [1, 3]}
    assert plain.differs(Component.of(Model(3))) == "Model with layers=2, not 3"
    assert plain.differs(Component.of(Model(2, new=True))) == "Model with new=its default, not True"
    assert Component.of(object()) == Component("object", {})


def test_a_scheduler_that_is_replaced_later() -> None:
    pipe = tiny_pipeline()
    with relcache.enable(pipe, preset_of(pipe)):
        run(pipe)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(ValueError, match="the preset is for DDIMScheduler, not EulerDiscreteScheduler"):
            run(pipe)


def test_how_features_are_held_is_part_of_a_preset(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    method = relcache.method_from_text("rfc:granularity=block,cache_dtype=int8,memory_limit=1GB")
    preset = Preset(preset_of(pipe).origin, STEPS, (0, 1, 4, 8), method)
    preset.save(tmp_path / "held.json")
    assert Preset.load(tmp_path / "held.json") == preset
    assert preset.method.cache_dtype == "int8"
    assert preset.method.memory_limit == "1GB"
    assert preset.method.schedule == Plan((0, 1, 4, 8), STEPS)
    with pytest.raises(ValueError, match="a preset counts the pipeline's own steps"):
        Preset(preset.origin, STEPS, (0, 1), relcache.method_from_text("auto:finer=2"))


@pytest.mark.parametrize("method", ["taylorseer:order=1,interval=4", "rfc"])
def test_a_forecast_that_needs_two_full_steps_in_other_lengths(method: str) -> None:
    pipe = tiny_pipeline()
    preset = Preset(preset_of(pipe).origin, STEPS, (0, 1, 4, 8), relcache.method_from_text(method))
    with relcache.enable(pipe, preset) as handle:
        for steps in (23, 5, 40):
            run(pipe, steps)
            assert len(handle.full_steps) == 4
            assert handle.report().fallbacks == {}


def test_a_preset_has_its_own_full_steps() -> None:
    pipe = tiny_pipeline()
    for budget in ({"full_steps": 5}, {"speedup": 2.0}):
        with pytest.raises(ValueError, match="a preset has full steps of its own"):
            relcache.enable(pipe, preset_of(pipe), **budget)


def test_every_shipped_preset_fits_its_model() -> None:
    presets = shipped()
    assert len(presets) >= 6
    for name, preset in presets.items():
        model, _, budget = name.rpartition("-")
        assert len(preset.full_steps) == int(budget)
        assert preset.judged["plan"] >= preset.judged["growing"]
        pipe = load_pipeline(model)
        with relcache.enable(pipe, f"preset:name={name}") as handle:
            assert handle.method == f"preset:name={name}"


# Finding one


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
