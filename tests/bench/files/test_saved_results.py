"""Files of results that a user has edited or a disk has broken: a line that names the file, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from relcache.bench.files import check_form
from relcache.bench.pages.page import write_page
from relcache.cli.app import app

RUNNER = CliRunner()
BENCH = ("bench", "class-conditional", "--preset", "small", "--samples", "3", "--steps", "8", "--nfc", "4",
         "--calibration-samples", "1", "--methods", "fora,rfc-1", "--html", "--out")  # fmt: skip
ANALYZE = ("analyze", "--samples", "2", "--batch", "1", "--steps", "6", "--out")

Edit = Callable[[Path], None]


def run(*arguments: object) -> str:
    result = RUNNER.invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    """What a command says that ends in a plain error: its last line, which is the only one."""
    result = RUNNER.invoke(app, [*map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    (line,) = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert result.output.strip().endswith(line)
    return line


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    run(*BENCH, out)
    return out


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis")
    run(*ANALYZE, out)
    return out


def written(pattern: str, content: bytes) -> Edit:
    return lambda folder: next(iter(folder.glob(pattern))).write_bytes(content)  # type: ignore[return-value]


def edited(pattern: str, change: Callable[[Any], Any]) -> Edit:
    def edit(folder: Path) -> None:
        path = next(iter(folder.glob(pattern)))
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return edit


def arrays(pattern: str, **changed: Any) -> Edit:
    """Other arrays in an .npz file; None takes one away."""

    def edit(folder: Path) -> None:
        path = next(iter(folder.glob(pattern)))
        with np.load(path) as known:
            kept = {**{name: known[name] for name in known.files}, **changed}
        np.savez(path, **{name: value for name, value in kept.items() if value is not None})

    return edit


def picture(mode: str, size: tuple[int, int]) -> Edit:
    return lambda folder: Image.new(mode, size).save(next(iter(folder.glob("runs/*/full-*/000001.png"))))


PART, PAIR, TRIED = "runs/*/rfc-1-nfc4-*/000000.npz", "runs/*/rfc-1-nfc4-*/000000-pair.npz", "runs/*/rfc-1-*-tried.json"
BUDGET, PNG = "runs/*/rfc-1-*-at-4.json", "runs/*/full-*/000001.png"


@pytest.mark.parametrize(
    ("edit", "file", "message"),
    [
        (written("settings.json", b"null"), "settings.json", "it is a table, got null"),
        (written("settings.json", b"[" * 100_000), "settings.json", "recursion"),
        (written("settings.json", b"\xff\xfe"), "settings.json", "can't decode"),
        (
            edited("settings.json", lambda known: known | {"cells": None}),
            "settings.json",
            "'cells' is a list, got null",
        ),
        (edited("settings.json", lambda known: known | {"setup": {}}), "settings.json", "'setup' has no 'model'"),
        (edited("settings.json", lambda known: {}), "settings.json", "it has no 'setup'"),
        (written("table.json", b"{}"), "table.json", "it is a list, got a table"),
        (edited("table.json", lambda rows: [row | {"psnr": "high"} for row in rows]), "table.json", "got a text"),
        (edited("table.json", lambda rows: rows[::-1]), "table.json", "belong to different runs"),
        (written(PNG, b""), "000001.png", "cannot identify image file"),
        (picture("RGBA", (28, 28)), "000001.png", "its pixels are RGBA"),
        (picture("L", (32, 28)), "sample 1", "has another size than sample 0"),
        (written(PART, b"PK"), "000000.npz", "is damaged"),
        (arrays(PART, report=None), "000000.npz", "it holds no report"),
        (arrays(PART, report=np.array('{"batch": 3}')), "000000.npz", "the report has no 'nfc'"),
    ],
)
def test_figures_of_edited_files(edit: Edit, file: str, message: str, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "copy")
    edit(tmp_path / "copy/class-conditional")
    said = refused("figures", tmp_path / "copy")
    assert str(tmp_path / "copy/class-conditional") in said
    assert file in said
    assert message in said


@pytest.mark.parametrize(
    ("edit", "file", "message"),
    [
        (written(BUDGET, b"null"), "-at-4.json", "it is a table, got null"),
        (written(BUDGET, b'{"5": {"method": "rfc"}}'), "-at-4.json", "it has no '4'"),
        (written(BUDGET, b'{"4": {"method": "rfc", "thresold": 1}}'), "-at-4.json", "did you mean 'threshold'"),
        (arrays(PAIR, ssim=None), "-pair.npz", "it holds no ssim"),
        (arrays(PAIR, psnr=np.zeros(2)), "-pair.npz", "for 2 samples, not for 3"),
        (arrays(PART, seeds=None), "000000.npz", "it holds no seeds"),
    ],
)
def test_going_on_from_edited_files(edit: Edit, file: str, message: str, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "copy")
    edit(tmp_path / "copy/class-conditional")
    said = refused(*BENCH, tmp_path / "copy")
    assert file in said
    assert message in said


@pytest.mark.parametrize("content", [b'{"a": 1}', b'[["a", 1]]', b"[[1, 2, 3]]", b"[[NaN, 4]]"])
def test_a_search_for_a_threshold_that_was_edited(content: bytes, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "copy")
    folder = tmp_path / "copy/class-conditional"
    next(iter(folder.glob(BUDGET))).unlink()
    written(TRIED, content)(folder)
    assert "-tried.json is damaged" in refused(*BENCH, tmp_path / "copy")


def test_a_table_of_samples_that_was_edited(results: Path, tmp_path: Path) -> None:
    """The page reads it; the command that writes the page makes it anew."""
    for content, message in (
        (b"a,b\n1,2\n", "it has no 'seed'"),
        (b"", "no samples of full"),
        (b'"', "damaged"),
    ):
        folder = tmp_path / message[-4:] / "copy"
        shutil.copytree(results / "class-conditional", folder)
        (folder / "samples.csv").write_bytes(content)
        with pytest.raises(ValueError, match=f"samples.csv is damaged.*{message}" if message != "damaged" else message):
            write_page(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (written("analysis.json", b"null"), "analysis.json is damaged (it is a table, got null)"),
        (edited("analysis.json", lambda known: known | {"about": None}), "'about' is a table, got null"),
        (edited("analysis.json", lambda known: known | {"modules": ["a"]}), "but analysis.json names (1, 1, 6)"),
        (
            edited("analysis.json", lambda known: known | {"about": known["about"] | {"batch": 0}}),
            "it names no samples",
        ),
        (arrays("parts/000001.npz", s=None), "000001.npz is damaged (it holds no s)"),
        (arrays("parts/000001.npz", s=np.zeros((1, 3, 2, 6))), "parts is damaged"),
        (written("parts/000001.npz", b"x"), "000001.npz is damaged"),
    ],
)
def test_an_analysis_that_was_edited(edit: Edit, message: str, analysis: Path, tmp_path: Path) -> None:
    shutil.copytree(analysis, tmp_path / "copy")
    edit(tmp_path / "copy")
    assert message in refused("figures", tmp_path / "copy")


def test_forms() -> None:
    check_form({"a": [1, 2.5], "b": None, "more": "x"}, {"a": [(int, float)], "b": type(None)})
    for value, form, message in (
        ([1, "2"], [int], "entry 2 is a whole number, got a text"),
        ({"a": {"b": 1}}, {"a": {"b": str}}, r"'a'\['b'\] is a text, got a whole number"),
        ({"a": True}, {"a": int}, "'a' is a whole number, got bool"),
        ({"a": 1, "b": None}, {"a": int, ...: str}, "'b' is a text, got null"),
    ):
        with pytest.raises(ValueError, match=message):
            check_form(value, form)


def test_a_race_that_was_edited(tmp_path: Path) -> None:
    run_of = {"title": "a", "method": "a", "group": "solver", "nfc": 5, "share": 0.3, "psnr": [30.0, 29.0, 31.0]}
    duel = {"nfc": 5, "share": 0.3, "default": {"psnr": [40.0, 39.0, 41.0]}, "others": []}
    race = {"about": "$ 模型", "default": "own", "qualities": {}, "columns": {}, "unfit": {}, "runs": [run_of, run_of],
            "equal_time": [duel]}  # fmt: skip
    for change, message in (
        ({}, None),
        ({"runs": None}, "'runs' is a list, got null"),
        (
            {"runs": [run_of | {"share": "x"}]},
            "entry 1 of 'runs'['share'] is a whole number or a number or null, got a text",
        ),
        ({"equal_time": [duel | {"default": {"psnr": 3}}]}, "['default']['psnr'] is a list, got a whole number"),
        ({"runs": []}, "there is nothing to draw"),
    ):
        (tmp_path / "race.json").write_text(json.dumps(race | change))
        if message is None:
            assert "race-psnr.svg" in run("figures", tmp_path)
        else:
            assert message in refused("figures", tmp_path)
