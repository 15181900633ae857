"""What `relcache analyze` records, against the same numbers computed from features that were kept whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline
from torch import Tensor
from typer.testing import CliRunner

from relcache.bench.comparison import analysis
from relcache.bench.comparison.entries import choose
from relcache.bench.figures.plots import correlation
from relcache.bench.pages.illustrations import illustrate, summary
from relcache.cli.app import app

STEPS, INTERVAL = 12, 3
FULL = (0, 1, 4, 7, 10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(blocks=2).save_pretrained(folder)
    return folder


def recorded(model: Path, out: Path, batch: int = 2) -> analysis.Analysis:
    return analysis.analyze(
        str(model), choose("fora,taylorseer-1,rfe-1"), [3, 5, 7], [0, 1, 2], out, interval=INTERVAL, steps=STEPS,
        batch=batch, options={"guidance_scale": 1.5},
    )  # fmt: skip


def whole_features() -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Inputs and outputs of each module at each step, by plain hooks, for the first two samples."""
    pipeline = tiny_pipeline(blocks=2)
    modules = [part for block in pipeline.transformer.transformer_blocks for part in (block.attn1, block.ff)]
    inputs: list[list[Tensor]] = [[] for _ in modules]
    outputs: list[list[Tensor]] = [[] for _ in modules]

    def keep(place: int, given: Tensor, output: Tensor) -> None:
        inputs[place].append(given)
        outputs[place].append(output)

    for place, module in enumerate(modules):
        module.register_forward_hook(lambda _, given, output, place=place: keep(place, given[0], output))
    pipeline([3, 5], 1.5, [torch.Generator().manual_seed(seed) for seed in (0, 1)], STEPS, output_type="np")
    return inputs, outputs


def l2(value: Tensor) -> Tensor:
    return value.double().flatten(1).norm(dim=1)


def l1(value: Tensor) -> Tensor:
    return value.double().abs().flatten(1).sum(1)


def test_against_whole_features(model: Path, tmp_path: Path) -> None:
    found = recorded(model, tmp_path).values
    inputs, outputs = whole_features()
    assert found["s"].shape == (1, 4, 6, STEPS)  # a branch, four modules, three samples with guidance in the batch
    rows = [0, 1, 2, 3]  # of the first batch of two samples
    for module in range(4):
        I, O = inputs[module], outputs[module]  # noqa: E741 (the paper's names)
        for step in range(STEPS):
            expected = {}
            if step:
                expected["input_change"] = l2(I[step] - I[step - 1])
                expected["output_change"] = l2(O[step] - O[step - 1])
            past = [full for full in FULL if full < step]
            if step not in FULL:
                t, before = past[-1], past[-2]
                k, n = step - t, t - before
                moved, direction = l2(I[step] - I[t]), O[t] - O[before]
                expected["s"] = l2(O[step] - O[t]) / moved
                expected["input_error"] = l1(I[step] - I[t] - k / n * (I[t] - I[before])) / l1(I[step])
                amount = (moved / l2(I[t] - I[before])).view(-1, 1, 1)
                forecasts = {"fora": O[t], "taylorseer-1": O[t] + k / n * direction, "rfe-1": O[t] + amount * direction}
                for name, forecast in forecasts.items():
                    expected[f"error {name}"] = l1(O[step] - forecast) / l1(O[step])
            for name, values in found.items():
                here = values[0, module, rows, step]
                if name in expected:
                    assert np.allclose(here, expected[name], rtol=2e-4), (name, module, step)
                else:
                    assert np.isnan(here).all(), (name, module, step)


def test_goes_on_and_does_not_mix(model: Path, tmp_path: Path) -> None:
    """A second call reads what is there; with a part gone it makes that one again; another model is refused."""
    first = recorded(model, tmp_path)
    parts = sorted((tmp_path / "parts").glob("*.npz"))
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    again = recorded(model, tmp_path)
    assert parts[0].stat().st_mtime_ns == kept
    assert all(np.array_equal(first.values[name], again.values[name], equal_nan=True) for name in first.values)
    parts[1].unlink()
    with pytest.raises(ValueError, match="is not finished: the same relcache analyze resumes it"):
        analysis.load(tmp_path)
    with pytest.raises(ValueError, match="holds another analysis"):
        recorded(model, tmp_path, batch=3)


def test_figures_from_saved_results(model: Path, tmp_path: Path) -> None:
    """Without the model: from the folder alone."""
    known = recorded(model, tmp_path)
    written = illustrate(tmp_path)
    assert {path.name for path in written} == {
        *(f"{name}.{kind}" for name in ("changes", "errors", "relation", "input-and-output-errors")
          for kind in ("png", "svg")),
        "summary.json",
    }  # fmt: skip
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 300
        elif path.suffix == ".svg":
            assert known.modules[0] in path.read_text() or path.stem == "errors"  # words stay words
    brief = summary(known)
    s = known.values["s"]
    expected = np.mean([np.nanstd(row) / np.nanmean(row) for row in s.reshape(-1, STEPS)])
    assert brief["s, relative standard deviation over a run"] == pytest.approx(expected, rel=1e-5)
    expected = np.mean([np.std(s[..., [k, k + 1]], -1) / np.mean(s[..., [k, k + 1]], -1) for k in (2, 5, 8)])
    assert brief["s, relative standard deviation from one full step to the next"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"unknown module of this analysis 'blocks\.9'"):
        illustrate(tmp_path, ["blocks.9"])


def test_a_stream_whose_input_does_not_move_has_no_s(model: Path, tmp_path: Path) -> None:
    known = recorded(model, tmp_path)
    others = summary(known)["modules"][1:]
    known.values["s"][:, 0] = np.nan
    brief = summary(known)
    assert brief["modules"][0]["over a run"] is None
    for key, name in (("over a run", "over a run"), ("from one full step to the next",) * 2):
        expected = np.mean([module[name] for module in others])
        assert brief[f"s, relative standard deviation {key}"] == pytest.approx(expected, rel=1e-5)


def test_correlation() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 1, 2]) == pytest.approx(-0.5)
    assert np.isnan(correlation([1, 2], [2, 4]))


def test_commands(model: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = ["--model", str(model), "--samples", "2", "--steps", "8", "--interval", "2", "--out", str(tmp_path)]
    result = runner.invoke(app, ["analyze", *arguments])
    assert result.exit_code == 0, result.output
    assert "s, relative standard deviation" in result.output
    result = runner.invoke(app, ["figures", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "relation.svg" in result.output
    result = runner.invoke(app, ["analyze", *arguments[:-1], str(tmp_path / "stack"), "--granularity", "stack"])
    assert result.exit_code == 0, result.output
    assert analysis.load(tmp_path / "stack").modules == ["transformer_blocks"]
    for wrong, message in (
        (["figures", str(tmp_path / "none")], "there is no folder"),
        (["analyze", *arguments, "--methods", "rfx"], "unknown method 'rfx'"),
        (["analyze", *arguments, "--methods", "full"], "'full' names no method besides full compute"),
        (["analyze", *arguments, "--steps", "2"], "needs at least 3 steps"),
        (["analyze", *arguments, "--granularity", "blocks"], "the granularity is one of 'module', 'block', 'stack'"),
        (["analyze", *arguments[:-1], str(tmp_path / "b"), "--prompt", "an owl"], "takes classes, got the prompt"),
    ):
        result = runner.invoke(app, wrong)
        assert result.exit_code == 1
        assert message in result.output.replace("\n", " ")
