"""Plans for one model and scheduler: saved, loaded, refused elsewhere, spread over another number of steps."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny import run_loop, tiny_dit, tiny_pipeline

import relcache
from relcache import Plan, Preset, Replay, Taylor
from relcache.bench.sampling.pipelines import load_pipeline
from relcache.calibration import calibrate
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


def test_without_the_package_of_shipped_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "relcache_models", None)  # makes its import fail
    assert shipped() == {}
    with pytest.raises(ValueError, match=r"no preset 'small-flux-8'.*the package relcache-models has the shipped ones"):
        Preset.named("small-flux-8")


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
