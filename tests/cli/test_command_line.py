"""The commands as a user types them, on the shipped model with few samples and steps."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.comparison.entries import choose
from relcache.bench.comparison.prepare import targets_for
from relcache.bench.sampling.budgets import interval_for
from relcache.cli.app import app
from relcache.cli.terminal import rich_table

RUNNER = CliRunner()
KEYS = {
    "method", "nfc_target", "nfc", "threshold", "tflops", "seconds", "psnr", "ssim", "accuracy", "frechet",
}  # fmt: skip


def run(*arguments: str) -> str:
    """Output of a command that ends well."""
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def demo(out: Path, *more: str) -> list[dict]:
    run("demo", "--samples", "4", "--steps", "12", "--nfc", "5", "--calibration-samples", "2", "--out", str(out), *more)
    return json.loads((out / "class/table.json").read_text())


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    demo(out)
    return out


def test_demo_table(demo_folder: Path) -> None:
    rows = json.loads((demo_folder / "class/table.json").read_text())
    assert all(set(row) >= KEYS for row in rows)
    assert [row["method"] for row in rows].count("full") == 1
    full, *others = rows
    assert full["method"] == "full"
    assert full["nfc"] == 12
    assert full["psnr"] is None
    names = {row["method"] for row in others}
    assert names >= {"fora", *(f"{m}-{order}" for m in ("taylorseer", "rfe", "rcs", "rfc") for order in (1, 2))}
    for row in others:
        assert row["nfc_target"] == 5
        assert (row["threshold"] is not None) == (row["method"].split("-")[0] in ("rcs", "rfc"))
        assert row["threshold"] is not None or row["nfc"] == 5
        assert 5 < row["psnr"] < 100
        assert -1 < row["ssim"] < 1
        assert 0 <= row["accuracy"] <= 1
        assert row["frechet"] > 0
        assert full["tflops"] * 5 / 12 < row["tflops"] < full["tflops"]


@pytest.mark.parametrize(
    ("task", "model", "parts", "more"),
    [
        ("text", "small-flux", ("kind", "colour", "size", "place"), set()),
        ("video", "small-video", ("kind", "colour", "size", "motion"),
         {"clips-nfc5.gif", *(f"frames-nfc5-{index}.png" for index in range(3))}),
    ],
)  # fmt: skip
def test_demo_of_prompts(task: str, model: str, parts: tuple[str, ...], more: set[str], tmp_path: Path) -> None:
    """Pictures and clips of prompts, judged by the recogniser; the sheet has the prompts above its columns."""
    options = ["--samples", "3", "--steps", "10", "--nfc", "5", "--calibration-samples", "1"]
    output = run("demo", "--task", task, *options, "--methods", "fora,rfc-1", "--out", str(tmp_path))
    assert f"{model}: 3 samples, 10 steps" in output
    rows = json.loads((tmp_path / task / "table.json").read_text())
    assert [row["method"] for row in rows] == ["full", "fora", "rfc-1"]
    for row in rows:
        assert row["right"] <= min(row[key] for key in parts)
        assert "frechet" not in row
    assert rows[1]["psnr"] < 60
    assert {path.name for path in (tmp_path / task).glob("*.*")} == {
        "table.json", "table.md", "table.csv", "samples.csv", "settings.json", "sheet-nfc5.png", *more,
    }  # fmt: skip


def test_demo_files(demo_folder: Path) -> None:
    table = (demo_folder / "class/table.md").read_text()
    assert "| full |" in table
    assert "| rfc-2 | 5 |" in table
    with Image.open(demo_folder / "class/sheet-nfc5.png") as sheet:
        assert min(sheet.size) > 400
        assert np.asarray(sheet.convert("L")).std() > 20  # pictures, not a blank page
    assert not list(demo_folder.rglob("*.tmp"))


def test_demo_goes_on_from_what_is_there(demo_folder: Path) -> None:
    """A second run reads what is there; with a batch gone it makes that one again, and the same."""
    before = json.loads((demo_folder / "class/table.json").read_text())
    files = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*.npz")}
    removed = [path for path in demo_folder.rglob("*-2-nfc5-*/000000.*") if "runs" in path.parts]
    assert len(removed) == 8
    pictures = {path: path.read_bytes() for path in removed if path.suffix == ".png"}
    for path in removed:
        path.unlink()
    after = demo(demo_folder)
    assert all(path.read_bytes() == content for path, content in pictures.items())
    assert all(path.stat().st_mtime_ns == time for path, time in files.items() if path not in removed)
    for row, other in zip(before, after, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}


def test_demo_of_chosen_methods(tmp_path: Path) -> None:
    rows = demo(tmp_path, "--methods", "fora,rfe-2")
    assert [row["method"] for row in rows] == ["full", "fora", "rfe-2"]


def test_damaged_results_are_named(tmp_path: Path) -> None:
    demo(tmp_path, "--methods", "fora")
    damaged = next(tmp_path.rglob("fora-nfc5-*/000000.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    arguments = ["demo", "--samples", "4", "--steps", "12", "--nfc", "5", "--calibration-samples", "2"]
    result = RUNNER.invoke(app, [*arguments, "--methods", "fora", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert f"{damaged.name} is damaged" in result.output.replace("\n", "")


def test_sample_writes_pictures_and_report(tmp_path: Path) -> None:
    output = run(
        "sample", "--classes", "sneaker,8", "--method", "rfc:order=2,threshold=0.3", "--steps", "10", "--seed", "7",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert "full of 10" in output
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "000-sneaker-seed7.png", "001-bag-seed8.png", "sheet.png",
    }  # fmt: skip
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["steps"] == 10
    assert report["nfc"] == len(report["full_steps"]) < 10
    with Image.open(tmp_path / "000-sneaker-seed7.png") as picture:
        assert picture.size == (28, 28)


def test_sample_finds_its_own_threshold(tmp_path: Path) -> None:
    run("sample", "--classes", "1,2", "--nfc", "5", "--steps", "10", "--out", str(tmp_path))
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert 4 <= report["nfc"] <= 6


def test_calibrate_prints_the_threshold(tmp_path: Path) -> None:
    threshold = float(run("calibrate", "--nfc", "5", "--steps", "10", "--samples", "2").split()[-1])
    run(
        "sample", "--method", f"rfc:order=2,threshold={threshold}", "--steps", "10", "--classes", "0,1",
        "--seed", "1000000", "--out", str(tmp_path),
    )  # fmt: skip
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["nfc"] == 5  # the calibration's own seeds and classes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--methods", "rcf"], "unknown method 'rcf': did you mean 'r"),
        (["demo", "--task", "music"], "unknown task 'music': there are class, text, video, all"),
        (["demo", "--steps", "2"], "no more than the warm-up"),
        (["demo", "--samples", "1"], "at least 2 samples"),
        (["demo", "--samples", "99999999"], "at most 1000000 samples"),
        (["demo", "--nfc", "many"], "whole numbers with commas"),
        (["demo", "--nfc", "14,60"], "at most the 50 steps; got 60"),
        (["demo", "--nfc", "[/x]"], "got '[/x]'"),
        (["sample", "--device", "abacus"], "the device 'abacus' cannot be used here"),
        (["sample", "--method", "plan:full_steps=3"], "a list of step numbers, got 3"),
        (["sample", "--method", 'plan:full_steps=[0,"a"]'], "at least 0, got 'a'"),
        (["sample", "--method", "linear:interval=4,weight=abc"], "a finite number, got 'abc'"),
        (["sample", "--method", "rfc:method=full"], "names two methods"),
        (["sample", "--method", "rfc:treshold=1"], "did you mean 'threshold'"),
        (["sample", "--method", "fora"], "fora needs interval"),
        (["sample", "--method", "fora:interval=0"], "at least 1, got 0"),
        (["sample", "--classes", "sneeker"], "unknown class 'sneeker'"),
        (["sample", "--classes", "11"], "classes are 0 to 9"),
        (
            ["sample", "--dtype", "float3"],
            "unknown dtype 'float3': did you mean 'float32'? there are float32, bfloat16",
        ),
        (["sample", "--nfc", "60"], "between 1 and 50"),
        (["calibrate", "--nfc", "5", "--method", "fora:interval=4"], "no threshold"),
        (["calibrate", "--nfc", "1"], "between the warm-up"),
        (["calibrate", "--nfc", "5", "--method", "rfcc"], "did you mean 'rfc'?"),
        (["calibrate", "--nfc", "nan"], "between the warm-up, 2, and 50; got nan"),
        (["demo", "--task", "vidio"], "did you mean 'video'?"),
        (["demo", "--nfc", ""], "whole numbers with commas"),
        (["demo", "--methods", ""], "names no method besides full compute"),
        (
            ["demo", "--methods", "plan:full_steps=[0,1,99]"],
            "names steps that the request of 50 steps does not have: [99]",
        ),
        (["sample", "--classes", "snaeker"], "did you mean 'sneaker'?"),
        (["sample", "--classes", "1,,2"], "unknown class ''"),
        (["sample", "--classes", "²"], "unknown class '²'"),
        (["sample", "--model", "small-flx"], "did you mean 'small-flux'?"),
        (["sample", "--model", __file__], "is a file: give a folder"),
        (["sample", "--device", "meta"], "the device 'meta' cannot be used here"),
        (["sample", "--guidance", "nan"], "--guidance is a finite number, got nan"),
        (["sample", "--nfc", "99", "--method", "fora"], "between the warm-up, 2, and 50; got 99"),
        (["sample", "--nfc", "1", "--steps", "1", "--method", "fora"], "so all are full: leave --nfc out"),
        (["sample", "--nfc", "1", "--method", "fora"], "between the warm-up, 2, and 50; got 1"),
        (["sample", "--nfc", "4", "--method", "plan:full_steps=[0,1]"], "plan has full_steps=[0, 1], which decides"),
        (["sample", "--nfc", "4", "--method", "rfc:threshold=1e-2"], "rfc has threshold=0.01, which decides"),
        (["sample", "--method", "rfc:threshold=-1"], "at least 0, got -1"),
        (["sample", "--option", "guidance_scale=abc"], "guidance_scale is a number, got 'abc'"),
        (["sample", "--option", "guidance_scale=NaN"], "guidance_scale is a finite number, got nan"),
        (["sample", "--option", "=3"], "--option takes name=value"),
        (["sample", "--option", "guidance_scal=3"], "did you mean 'guidance_scale'?"),
    ],
)
def test_bad_options_are_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    extra = ["--out", str(tmp_path)] if arguments[0] != "calibrate" else []
    result = RUNNER.invoke(app, [*arguments, *extra])
    assert result.exit_code == 1
    assert message in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("height=abc", "height is a whole number or null, got 'abc'"),
        ("height=64.5", "height is a whole number or null, got 64.5"),
        ("max_sequence_length=-4", "max_sequence_length is at least 1, got -4"),
        ("height=0", "height is at least 1, got 0"),
        ("width=1", "FluxPipeline cannot be called with height 64, width 1"),
        ("joint_attention_kwargs=3", "FluxPipeline cannot be called with"),
        ("callback_on_step_end=x", "(TypeError: 'str' object is not callable)"),
        ("sigmas=[]", "FluxPipeline made no step"),
        ('callback_on_step_end_tensor_inputs=["x"]', "` has to be in"),
        ("return_dict=false", "return_dict is not an option: relcache sets it itself"),
        ("num_images_per_prompt=2", "num_images_per_prompt is not an option: relcache sets it itself"),
        ("heigth=64", "did you mean 'height'?"),
    ],
)
def test_options_that_the_pipeline_cannot_take(option: str, message: str, tmp_path: Path) -> None:
    asked = ["sample", "--prompt", "a red circle", "--steps", "3", "--method", "full", "--option", option]
    result = RUNNER.invoke(app, [*asked, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert message in result.output.replace("\n", " ")


def test_a_threshold_that_does_not_give_the_number() -> None:
    output = run("calibrate", "--nfc", "5", "--samples", "1", "--steps", "8", "--method", "rfc:longest_gap=1")
    assert "no threshold gave 5 full steps; the nearest gives 8" in output


def test_samples_of_a_size_that_the_judge_does_not_know(tmp_path: Path) -> None:
    few = ["--preset", "small", "--samples", "2", "--steps", "4", "--nfc", "3", "--methods", "fora", "--size", "32"]
    output = run("bench", "text-to-image", *few, "--out", str(tmp_path))
    assert "dashes for recogniser: it knows only samples of height 64" in " ".join(output.split())
    assert json.loads((tmp_path / "text-to-image/table.json").read_text())[1]["right"] is None


def test_the_text_of_a_number_is_no_order(tmp_path: Path) -> None:
    """-2 at the end of 1e-2 is not the order of rfc-2."""
    output = run("sample", "--classes", "1", "--steps", "6", "--method", "rfc:threshold=1e-2", "--out", str(tmp_path))
    assert "rfc:threshold=1e-2: 1 in" in output
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["nfc"] == 6


def test_rows_that_are_not_at_equal_cost_are_marked(tmp_path: Path) -> None:
    """Six of twelve steps: intervals have them by another phase; what has another number is marked everywhere."""
    asked = ["--preset", "small", "--samples", "2", "--steps", "12", "--nfc", "6", "--calibration-samples", "1"]
    methods = "fora,taylorseer-1,taylorseer:order=1,interval=2"
    output = run("bench", "class-conditional", *asked, "--methods", methods, "--html", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "class-conditional/table.json").read_text())
    assert [(row["method"], row["nfc"], row["interval"], row["phase"]) for row in rows[1:]] == [
        ("taylorseer-order-1-interval-2", 7, 2, None), ("fora", 6, 2, 4), ("taylorseer-1", 6, 2, 4),
    ]  # fmt: skip
    text = (tmp_path / "class-conditional/table.md").read_text()
    assert "| taylorseer-order-1-interval-2 | – | 7.00* |" in text
    assert "| fora | 6 | 6.00 |" in text
    page = (tmp_path / "class-conditional/report.html").read_text()
    for said in (text, " ".join(output.split()), page):
        assert "* not the requested number of full steps" in said
    assert ">7*</td>" in page
    run("bench", "class-conditional", *asked, "--methods", "fora", "--out", str(tmp_path / "equal"))
    assert "requested" not in (tmp_path / "equal/class-conditional/table.md").read_text()


def test_a_class_that_is_not_known() -> None:
    for name, hint in (("Flx", "the nearest are FluxTransformer2DModel"), ("zzzz", "relcache models lists all")):
        result = RUNNER.invoke(app, ["models", name])
        assert result.exit_code == 1
        assert f"no class name contains '{name}'; {hint}" in result.output.replace("\n", " ")


def test_folder_without_a_pipeline(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["sample", "--model", str(tmp_path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no model_index.json" in result.output.replace("\n", " ")


def test_published_numbers_of_full_steps() -> None:
    assert [interval_for(nfc, 50) for nfc in (14, 11, 10, 8, 7)] == [4, 5, 6, 7, 9]
    assert interval_for(14, 50, phase=3) == 4
    assert interval_for(8, 50, phase=3) == 8
    assert [interval_for(nfc, 50, warmup=3) for nfc in (14, 8)] == [4, 8]  # on FLUX; the paper has 4 and 9
    assert [interval_for(nfc, 50, warmup=1) for nfc in (17, 9, 7)] == [3, 6, 8]  # FORA on FLUX, HunyuanVideo
    assert interval_for(40, 50) == 1  # every other step is full at 2: 26 of 50, and 40 lies nearer to all
    assert targets_for(SMALL["class"], 50) == [14, 8, 7]
    assert targets_for(SMALL["class"], 12) == [3]


def test_names_choose_one_order_or_all() -> None:
    assert [entry.name for entry in choose("rfc,fora")] == ["rfc-1", "rfc-2", "fora"]
    assert {entry.name for entry in choose("all")} > {entry.name for entry in choose(None)}


def test_table_fits_a_narrow_terminal(demo_folder: Path) -> None:
    """Nothing is cut off at 80 columns."""
    rows = json.loads((demo_folder / "class/table.json").read_text())
    rows[1] |= {"seconds": 123.4, "frechet": 12.345, "threshold": 0.2345, "nfc": 13.75, "tflops": 0.0352}
    console = Console(width=80, file=io.StringIO())
    console.print(rich_table(rows, "title", SMALL["class"].columns))
    printed = console.file.getvalue()
    assert "…" not in printed
    assert "taylorseer-p3-1" in printed
    assert "12.345" in printed


def test_each_row_of_a_method_with_a_budget_has_it(tmp_path: Path) -> None:
    asked = ["demo", "--methods", "auto,taylor:order=1,newton:schedule=growing", "--nfc", "5,3", "--samples", "2"]
    result = RUNNER.invoke(app, [*asked, "--steps", "8", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "class" / "table.json").read_text(encoding="utf-8"))
    full_steps = {(row["method"], row["nfc_target"]): row["nfc"] for row in rows}
    assert (full_steps["auto", 5], full_steps["auto", 3]) == (5, 3)
    assert full_steps["taylor-order-1", 3] == 3
    assert "newton-schedule-growing" in {method for method, _ in full_steps}
