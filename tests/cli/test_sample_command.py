"""`relcache sample` on any pipeline: prompts, clips, methods side by side, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small_pipelines
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from relcache.bench.comparison.entries import split_methods
from relcache.bench.figures.sheet import SheetRow
from relcache.bench.sampling import gallery
from relcache.bench.sampling.batches import Sampler
from relcache.cli.app import app

RUNNER = CliRunner()
PROMPTS = ["--prompt", "an owl on a wire", "--prompt", "a wire"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    small_pipelines.flux()[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hunyuan")
    small_pipelines.hunyuan_video()[0].save_pretrained(folder)
    return folder


def sample(*arguments: object) -> str:
    """Output of a command that ends well."""
    result = RUNNER.invoke(app, ["sample", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    """What a command that ends in a plain error says, in one line."""
    result = RUNNER.invoke(app, ["sample", *map(str, arguments)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def of_flux(folder: Path, *more: object) -> list[object]:
    return ["--model", folder, "--size", "16x24", "--option", "max_sequence_length=24", "--steps", 8, *more]


def of_hunyuan(folder: Path, *more: object) -> list[object]:
    template = 'prompt_template={"template": "{}", "crop_start": 0}'
    return ["--model", folder, "--size", 16, "--frames", 9, "--option", template, "--option", "max_sequence_length=24",
            "--steps", 8, *more]  # fmt: skip


def test_pictures_of_prompts(flux: Path, tmp_path: Path) -> None:
    output = sample(*of_flux(flux, *PROMPTS, "--seed", 3, "--nfc", 4, "--guidance", 2, "--out", tmp_path))
    assert "FluxTransformer2DModel" in output
    names = {"000-an-owl-on-a-wire-seed3.png", "001-a-wire-seed4.png", "sheet.png", "report.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with Image.open(tmp_path / "001-a-wire-seed4.png") as picture:
        assert picture.size == (24, 16)
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert abs(report["nfc"] - 4) <= 1  # the threshold is found on other samples
    assert f"{report['nfc']} full of 8" in output


def test_a_picture_is_its_own_whatever_is_made_with_it(flux: Path, tmp_path: Path) -> None:
    """Of a prompt and seed alone, and in a batch: the same bytes but for rounding."""
    method = ["--method", "taylorseer:order=1,interval=3"]
    sample(*of_flux(flux, *PROMPTS, *method, "--out", tmp_path / "both"))
    sample(*of_flux(flux, "--prompt", "a wire", *method, "--seed", 1, "--out", tmp_path / "one"))
    name = "a-wire-seed1.png"
    both, one = (
        np.asarray(Image.open(tmp_path / part)).astype(int) for part in (f"both/001-{name}", f"one/000-{name}")
    )
    assert np.abs(both - one).max() <= 1


def test_methods_side_by_side(flux: Path, tmp_path: Path) -> None:
    methods = "full,fora,taylorseer-1,taylorseer-2,rfc"
    output = sample(*of_flux(flux, *PROMPTS, "--compare", methods, "--nfc", 4, "--out", tmp_path))
    for name in methods.split(","):
        assert f"{name}: 2 in " in output
        assert re.search(rf"^ *{name} +[48] +[–\d.]+ +[\d.]+ *$", output, re.MULTILINE)  # its row of the table
        assert (tmp_path / f"001-a-wire-seed1-{name}.png").is_file()
    reports = json.loads((tmp_path / "report.json").read_text())
    assert [report["nfc"] for report in reports] == [8, 4, 4, 4, 4]
    line = re.search(r"rfc again, without calibration: relcache sample (.*)", output).group(1)
    again = sample(*shlex.split(line), "--out", tmp_path / "again")
    assert "--method rfc:" in line
    assert "--size 16x24" in line
    assert "--nfc" not in line
    assert "4 full of 8" in again
    assert "without calibration" not in again
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > sheet.width  # five rows of two wide pictures with their captions


def test_methods_of_one_short_name_keep_files_of_their_own(flux: Path, tmp_path: Path) -> None:
    long = f"rfc:threshold=0.3{60 * '0'}"
    sample(*of_flux(flux, "--prompt", "a wire", "--compare", f"{long},order=1,{long},order=2", "--out", tmp_path))
    assert len(list(tmp_path.glob("000-a-wire-*.png"))) == 2
    names = "taylorseer,TaylorSeer,taylorseer-2"
    sample(*of_flux(flux, "--prompt", "an owl", "--compare", names, "--nfc", 4, "--out", tmp_path))
    assert len(list(tmp_path.glob("000-an-owl-*.png"))) == 3


def test_a_threshold_of_prompts(flux: Path) -> None:
    """Fewer prompts than samples: they come in turn."""
    few = ["--steps", "8", "--samples", "3", "--nfc", "4", "--model", str(flux)]
    result = RUNNER.invoke(app, ["calibrate", *few, *PROMPTS, "--size", "16x24"])
    assert result.exit_code == 0, result.output
    assert 0 < float(result.output.split()[-1]) < 10


def test_lists_of_methods() -> None:
    assert split_methods("full,rfc:order=1,threshold=0.3,fora") == ["full", "rfc:order=1,threshold=0.3", "fora"]
    assert split_methods("plan:full_steps=[0,1,2],order=1, full") == ["plan:full_steps=[0,1,2],order=1", "full"]


def test_clips(hunyuan: Path, tmp_path: Path) -> None:
    sample(*of_hunyuan(hunyuan, *PROMPTS, "--compare", "full,fora:interval=3", "--out", tmp_path))
    with Image.open(tmp_path / "000-an-owl-on-a-wire-seed0-fora-interval-3.gif") as clip:
        assert clip.n_frames == 9
        assert clip.size == (256, 256)
    with Image.open(tmp_path / "clips.gif") as clips:
        assert clips.n_frames == 9
        first = np.asarray(clips.convert("RGB")).astype(int)
        clips.seek(8)
        assert np.abs(np.asarray(clips.convert("RGB")).astype(int) - first).max() > 20
    for name in ("sheet.png", "frames-0.png", "frames-1.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 20
    assert len(json.loads((tmp_path / "report.json").read_text())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "DiTPipeline takes --classes, not --prompt"),
        (["--compare", "full,rfx"], "unknown method 'rfx': did you mean 'rf"),
        (["--compare", "full,fora"], "fora needs interval"),
        (["--compare", ","], "--method takes one method, --compare one or more; got ','"),
        (["--method", "full,fora:interval=4"], "--method takes one method, --compare one or more"),
        (["--option", "output_type=pil"], "output_type is not an option: relcache sets it itself"),
        (["--method", "fora:interval=4", "--nfc", "14"], "fora has interval=4, which decides its full steps"),
        (["--size", "64by64"], "--size takes HEIGHTxWIDTH such as 480x832, or one number, got '64by64'"),
        (["--size", "0"], "got '0'"),
        (["--frames", "9"], "DiTPipeline takes no num_frames"),
        (["--option", "speed"], "--option takes name=value, got 'speed'"),
        (["--option", "speed=fast"], "DiTPipeline takes no speed: it takes class_labels"),
        (["--offload", "disk"], "unknown offload 'disk': there are none, model, group, sequential"),
        (["--offload", "model", "--device", "cpu"], "on the CPU leave it out"),
    ],
)
def test_what_the_class_model_does_not_take(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused("--model", "dit-fashion-mnist", "--out", tmp_path, *arguments)


def test_a_text_model_wants_a_prompt(flux: Path, tmp_path: Path) -> None:
    assert "FluxPipeline takes --prompt, not --classes; give one prompt" in refused(*of_flux(flux))
    assert "FluxPipeline takes --prompt" in refused(*of_flux(flux, "--classes", "1"))
    assert "FluxPipeline takes no num_frames" in refused(*of_flux(flux, *PROMPTS, "--frames", 5))


def test_a_broken_weights_file_is_named(flux: Path, tmp_path: Path) -> None:
    shutil.copytree(flux, tmp_path / "model")
    for part in ("transformer/diffusion_pytorch_model", "text_encoder_2/model"):
        weights = tmp_path / "model" / f"{part}.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        assert f"{weights} is broken" in refused(*of_flux(tmp_path / "model", *PROMPTS))
        weights.write_bytes(whole)
    (tmp_path / "model/transformer/config.json").write_text("null")
    said = refused(*of_flux(tmp_path / "model", *PROMPTS))
    assert f"{tmp_path / 'model/transformer/config.json'} is broken: it holds no table" in said
    shutil.copy(flux / "transformer/config.json", tmp_path / "model/transformer/config.json")
    weights.unlink()
    assert "text_encoder_2" in refused(*of_flux(tmp_path / "model", *PROMPTS))


def test_weights_that_a_file_lacks_are_never_drawn_at_random(flux: Path, tmp_path: Path) -> None:
    """diffusers and transformers fill them in and say so in a log alone."""
    shutil.copytree(flux, tmp_path / "model")
    asked = of_flux(tmp_path / "model", *PROMPTS, "--method", "fora:interval=3", "--out", tmp_path / "out")
    found = sorted(path for path in (tmp_path / "model").rglob("*.safetensors"))
    assert {path.parent.name for path in found} == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    for path in found:
        whole = load_file(path)
        name = sorted(whole)[len(whole) // 2]
        for value in (None, torch.zeros(7, 7)):
            changed = {key: tensor for key, tensor in whole.items() if key != name}
            save_file(changed if value is None else {**changed, name: value}, path, metadata={"format": "pt"})
            said = refused(*asked)
            assert name.removeprefix("text_model.") in said
            assert f"could not load '{tmp_path / 'model'}'" in said
            if value is None:
                assert f"the weights in {path.parent} lack" in said
        save_file({**whole, "more": torch.zeros(1)}, path, metadata={"format": "pt"})
        sample(*asked)  # what is not used does no harm
        save_file(whole, path, metadata={"format": "pt"})
    sample(*asked)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_would_help(
    error: Exception, flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(Sampler, "run", run)
    method = ["--method", "fora:interval=3", "--device", "cpu", "--out", tmp_path]
    said = refused(*of_flux(flux, *PROMPTS, *method))
    assert "out of memory; it would help to give --dtype bfloat16, or a --batch below 32, or a smaller --size" in said
    said = refused(*of_flux(flux, *PROMPTS, *method, "--dtype", "bfloat16", "--batch", 1))
    assert "it would help to give a smaller --size" in said
    assert "--frames" not in said
    few = ["calibrate", "--nfc", "5", "--batch", "1", "--dtype", "bfloat16", "--samples", "1"]
    result = RUNNER.invoke(app, few)  # classes have one size
    assert result.exit_code == 1
    assert "out of memory\n" in result.output
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("relcache.bench.sampling.pipelines.load_pipeline", lambda *arguments: small_pipelines.flux()[0])
    said = refused(*of_flux(flux, *PROMPTS, "--method", "fora:interval=3", "--offload", "model"))
    assert "it would help to give --offload group" in said


def test_other_errors_are_not_out_of_memory(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the library or of torch keeps its traceback."""

    def run(*arguments: object) -> None:
        raise NotImplementedError("no kernel for this")

    monkeypatch.setattr(Sampler, "run", run)
    result = RUNNER.invoke(app, ["sample", *map(str, of_flux(flux, *PROMPTS, "--out", tmp_path))])
    assert isinstance(result.exception, NotImplementedError)


def test_long_clips_have_short_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve frames spread over the clip, the first and the last among them."""
    drawn = []
    monkeypatch.setattr(gallery, "draw_sheet", lambda rows, *arguments, **options: drawn.append(rows[0].images) or b"")
    clips = np.arange(40, dtype=np.float32)[None, :, None, None, None] * np.ones((1, 1, 3, 8, 8), np.float32)
    gallery.write_sheets(tmp_path, [SheetRow("one", clips / 39)], "title")
    strip = (drawn[-1][:, 0, 0, 0] * 39).round()
    assert (strip[0], strip[-1], len(strip)) == (0, 39, 12)
    assert set(np.diff(strip)) == {3, 4}


def test_a_killed_demo_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle: what is there can be read, and the same command makes the rest."""
    arguments = ["--samples", "4", "--steps", "12", "--nfc", "5", "--calibration-samples", "2", "--methods", "fora,rfe"]
    command = [sys.executable, "-m", "relcache", "demo", *arguments, "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had finished before it was killed"
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert finished
    for path in finished:
        with np.load(path) as arrays:
            assert all(len(arrays[name]) == 4 for name in arrays.files if arrays[name].ndim)
    assert not list(tmp_path.rglob("table.md"))
    result = RUNNER.invoke(app, ["demo", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert len(json.loads((tmp_path / "class/table.json").read_text())) == 4
