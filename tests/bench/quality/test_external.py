"""Metrics in environments of their own: how they are asked, with packages that stand in for the real ones."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import sysconfig
from pathlib import Path

import pytest
import small_pipelines
import torch
from typer.testing import CliRunner

from relcache.bench.comparison.benchmarks import PAPER
from relcache.bench.quality import external
from relcache.bench.quality.external import External
from relcache.bench.quality.measures import DIMENSIONS, make_measure, unavailable, unjudged, vbench_total
from relcache.cli.app import app

IMAGE_REWARD = """
print("talks to whoever listens")
def load(name, device):
    assert (name, device) == ("ImageReward-v1.0", "cpu")
    class Model:
        def score(self, prompt, picture):
            assert picture.mode == "RGB"
            if prompt == "broken":
                raise RuntimeError("no such word")
            return len(prompt) + picture.getpixel((0, 0))[0] / 255
    return Model()
"""
CV2 = """
def VideoWriter_fourcc(*letters):
    return "".join(letters)
class VideoWriter:
    def __init__(self, path, code, rate, size):
        assert code == "mp4v"
        self.path, self.size, self.frames = path, size, []
    def write(self, frame):
        assert frame.shape == (self.size[1], self.size[0], 3)
        self.frames.append(int(frame[0, 0, 2]))  # red
    def release(self):
        open(self.path, "w").write(repr(self.frames))
"""
VBENCH = """
import json, pathlib
class VBench:
    def __init__(self, device, info, out):
        self.info, self.out = json.load(open(info)), pathlib.Path(out)
        self.out.mkdir(exist_ok=True)
    def evaluate(self, videos, name, dimension_list):
        (dimension,) = dimension_list
        found = []
        for entry in self.info:
            assert dimension in entry["dimension"]
            for path in pathlib.Path(videos).glob(entry["prompt_en"] + "-?.mp4"):
                found.append({"video_path": str(path), "video_results": sum(eval(path.read_text()))})
        result = {dimension: [0.0, found]}
        (self.out / (name + "_eval_results.json")).write_text(json.dumps(result))
"""
INFO = (
    '[{"prompt_en": "a dog", "dimension": ["color", "imaging_quality"]}, '
    '{"prompt_en": "a cat", "dimension": ["scene"]}]'
)


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments that are this one, with the packages' stand-ins."""
    monkeypatch.setenv("RELCACHE_ENVIRONMENTS", str(tmp_path / "environments"))
    packages = tmp_path / "packages"
    (packages / "vbench").mkdir(parents=True)
    (packages / "ImageReward.py").write_text(IMAGE_REWARD)
    (packages / "cv2.py").write_text(CV2)
    (packages / "vbench/__init__.py").write_text(VBENCH)
    (packages / "vbench/VBench_full_info.json").write_text(INFO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), sysconfig.get_paths()["purelib"]]))
    for name in external.ENVIRONMENTS:
        folder = external.folder_of(name)
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").symlink_to(sys.executable)
        (folder / "ready").touch()
    own = external.folder_of("vbench") / "lib/python3.10/site-packages/vbench"
    own.mkdir(parents=True)
    (own / "VBench_full_info.json").write_text(INFO)
    return tmp_path / "environments"


def test_image_reward(environments: Path) -> None:
    images = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    measure = make_measure("image-reward", "cpu")
    for _ in range(2):  # one process answers both
        assert measure(images, images, ["an owl", "a"])["image_reward"].tolist() == pytest.approx([6.2, 1.2])


def test_vbench(environments: Path) -> None:
    clips = torch.zeros(2, 3, 3, 8, 12, dtype=torch.uint8)
    clips[0, :, 0], clips[1, :, 0] = 10, 20  # red
    scores = make_measure("vbench", "cpu")(clips, clips, ["a dog", "a cat"])
    assert list(scores) == list(DIMENSIONS)
    assert scores["color"].tolist() == pytest.approx([30, math.nan], nan_ok=True)
    assert scores["imaging_quality"].tolist() == pytest.approx([0.3, math.nan], nan_ok=True)
    assert scores["scene"].tolist() == pytest.approx([math.nan, 60], nan_ok=True)
    assert sum(int(values.isnan().sum()) for values in scores.values()) == 32 - 3
    twice = make_measure("vbench", "cpu")(clips, clips, ["a dog", "a dog"])["color"]  # two clips of one prompt
    assert twice.tolist() == [30, 60]
    assert unjudged(["a dog"]) == [name for name in DIMENSIONS if name not in ("color", "imaging_quality")]


def test_a_script_that_fails_says_why(environments: Path) -> None:
    ask = External("image-reward", "cpu")
    with pytest.raises(ValueError, match=r"(?s)image-reward failed in .*no such word"):
        ask(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["broken"])


def test_what_is_missing_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELCACHE_ENVIRONMENTS", str(tmp_path))
    assert unavailable("vbench") == "vbench needs an environment of its own: relcache environment vbench"
    assert "relcache environment image-reward" in (unavailable("image-reward") or "")
    assert "--clip" in (unavailable("clip", model=str(tmp_path)) or "")
    assert unavailable("pair") is None
    assert unavailable("recogniser", ["a red circle"]) is None
    assert "'an owl' is not a prompt of the shapes" in (unavailable("recogniser", ["a red circle", "an owl"]) or "")


def test_vbench_judges_its_own_prompts(environments: Path) -> None:
    """The package's list is found in its environment, and is the benchmark's own."""
    assert external.vbench_prompts() == {"a dog": {"color", "imaging_quality"}, "a cat": {"scene"}}
    assert PAPER["video"].conditions([0, 1, 2]) == ["a dog", "a cat", "a dog"]
    assert unavailable("vbench", ["a cat"]) is None
    assert "'an owl' is not one" in (unavailable("vbench", ["a cat", "an owl"]) or "")


def test_text_to_video(environments: Path, tmp_path: Path) -> None:
    """Of the paper's benchmark of clips: VBench's dimensions in the files, and which of them lack clips."""
    model = tmp_path / "model"
    small_pipelines.hunyuan_video()[0].save_pretrained(model)
    asked = [
        "bench", "text-to-video", "--model", model, "--samples", 2, "--steps", 6, "--nfc", 3, "--methods", "fora",
        "--size", "16x32", "--frames", 9, "--option", 'prompt_template={"template": "{}", "crop_start": 0}',
        "--option", "max_sequence_length=16", "--out", tmp_path,
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(part) for part in asked])
    assert result.exit_code == 0, result.output
    lacking = [name for name in DIMENSIONS if name not in ("color", "imaging_quality", "scene")]
    assert f"no prompt here is judged by {', '.join(lacking)}: table.csv" in " ".join(result.output.split())
    full, fora = json.loads((tmp_path / "text-to-video/table.json").read_text())
    assert (full["nfc"], fora["nfc"], fora["vbench"]) == (6, 3, None)
    assert all(full[name] is None for name in lacking)
    assert full["imaging_quality"] == pytest.approx(0.01 * full["color"])
    assert "scene" not in (tmp_path / "text-to-video/table.md").read_text()
    with (tmp_path / "text-to-video/samples.csv").open() as file:
        dog, cat, *_ = csv.DictReader(file)
    assert dog["scene"] == cat["color"] == ""
    assert float(dog["color"]) == full["color"]
    assert float(cat["scene"]) == full["scene"]


def test_an_environment_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELCACHE_ENVIRONMENTS", str(tmp_path))
    broken = external.Environment((("--no-index", "relcache-no-such-package"),), "image_reward_scores.py")
    monkeypatch.setitem(external.ENVIRONMENTS, "image-reward", broken)
    asked = CliRunner().invoke(app, ["environment", "image-reward"], input="n\n")
    assert asked.exit_code == 1
    assert "relcache-no-such-package" in asked.output
    assert "GB" in asked.output
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(app, ["environment", "image-reward", "--yes"])
    assert result.exit_code == 1
    assert "No matching distribution" in result.output
    assert unavailable("image-reward") is not None
    (tmp_path / "image-reward/mine").write_text("kept")
    result = CliRunner().invoke(app, ["environment", "image-reward", "--yes", "--python", str(tmp_path / "python")])
    assert "python cannot be run (No such file or directory)" in result.output.replace("\n", "")
    assert (tmp_path / "image-reward/mine").is_file(), "what is there is given up only for another"
    result = CliRunner().invoke(app, ["environment", "imagereward"])
    assert "unknown environment 'imagereward': did you mean 'image-reward'? there are" in result.output.replace(
        "\n", " "
    )


def test_vbench_s_total() -> None:
    """Its own weights: quality counts four times as much as meaning, and the dynamic degree half."""
    best = torch.tensor([[most for _, most, _ in DIMENSIONS.values()]])
    assert vbench_total(best) == pytest.approx(100)
    least = torch.tensor([[least for least, _, _ in DIMENSIONS.values()]])
    assert vbench_total(least) == pytest.approx(0, abs=1e-5)
    names = list(DIMENSIONS)
    still = best.clone()
    still[0, names.index("dynamic_degree")] = 0
    assert vbench_total(still) == pytest.approx(100 * (1 - 0.8 * 0.5 / 6.5))
    colourless = best.clone()
    colourless[0, names.index("color")] = 0
    assert vbench_total(colourless) == pytest.approx(100 * (1 - 0.2 / 9))
    unknown = best.clone()
    unknown[0, 3] = math.nan
    assert vbench_total(unknown) is None
    assert vbench_total(torch.cat([best, unknown])) == pytest.approx(100)
