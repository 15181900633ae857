"""Where commands write: tried before anything is computed; and what was computed is kept where it cannot be written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from relcache.bench import files
from relcache.bench.comparison.analysis import load
from relcache.bench.sampling.batches import Sampler
from relcache.cli.app import app

RUNNER = CliRunner()
FEW = ("--samples", "2", "--steps", "6", "--nfc", "4", "--calibration-samples", "1", "--methods", "fora")
SPEED = ("bench", "speed", "--blocks", "1", "--size", "32", "--batch", "1", "--steps", "6", "--nfc", "4", "--methods",
         "fora", "--granularity", "stack", "--rounds", "1")  # fmt: skip
COMMANDS = {
    "demo": ("demo", *FEW),
    "bench": ("bench", "class-conditional", "--preset", "small", *FEW),
    "sample": ("sample", "--classes", "1,2", "--steps", "6", "--method", "fora:interval=2"),
    "analyze": ("analyze", "--steps", "6", "--samples", "1"),
    "speed": SPEED,
}


def run(*arguments: object) -> str:
    result = RUNNER.invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = RUNNER.invoke(app, [*map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return next(line for line in result.output.splitlines() if line.startswith("error:"))


@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_are_tried_before_anything_is_computed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the way, below a file, no room, a read-only disk, a link to nothing, a name that cannot be."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()

    def computed(*arguments: object, **options: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(Sampler, "call", computed)
    monkeypatch.setattr("relcache.bench.speed.speed.race", computed)
    for out in ("file", "file/below", "link", "x" * 300):
        said = refused(*COMMANDS[command], "--out", tmp_path / out)
        assert f"{tmp_path / out}" in said
        assert "give another --out" in said
    for code, reason in ((errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")):

        def full(*arguments: object, code: int = code, reason: str = reason, **options: object) -> None:
            raise OSError(code, reason)

        with monkeypatch.context() as patch:
            patch.setattr(files.tempfile, "NamedTemporaryFile", full)
            said = refused(*COMMANDS[command], "--out", tmp_path / "folder")
        assert f"{tmp_path / 'folder'}" in said
        assert reason in said
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    for command, file in (("sample", "report.json"), ("demo", "class/table.md"), ("demo", "class/settings.json")):
        out = tmp_path / file.replace("/", "-")
        (out / file).mkdir(parents=True)
        assert f"{out / file} is a folder" in refused(*COMMANDS[command], "--out", out)


def test_a_disk_that_fills_while_pictures_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures made meanwhile are kept elsewhere, and the line says where."""
    whole = files.write_whole

    def write(path: Path, content: bytes) -> None:
        if path.is_relative_to(tmp_path / "out"):
            raise OSError(f"{path} cannot be written (No space left on device)")
        whole(path, content)

    monkeypatch.setattr(files, "write_whole", write)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    said = refused(*COMMANDS["sample"], "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'}/000-trouser-seed0.png cannot be written (No space left on device)" in said
    elsewhere = Path(said.rpartition(" ")[2])
    assert said.endswith(f"the results were written to {elsewhere}")
    assert {path.name for path in elsewhere.iterdir()} == {"000-trouser-seed0.png", "001-pullover-seed1.png"}
    said = refused(*SPEED, "--out", tmp_path / "out")
    elsewhere = Path(said.rpartition(" ")[2])
    assert len(json.loads((elsewhere / "speed-dit/table.json").read_text())["rows"]) == 2


def test_where_nothing_can_be_written_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> None:
        raise OSError(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(files, "write_whole", write)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    assert refused(*COMMANDS["sample"], "--out", tmp_path / "out").endswith("(No space left on device)")
    assert not list(tmp_path.glob("relcache-*"))


def test_a_write_that_fails_names_its_path_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match=r"folder\.json cannot be written \(Is a directory\)"):
        files.write_json(tmp_path / "folder.json", 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match=r"file/below/a\.json cannot be written \(Not a directory\)"):
        files.write_json(tmp_path / "file/below/a.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.json", "file"}


def test_names_with_brackets_and_other_signs(tmp_path: Path) -> None:
    for name in ("[red]x", "红[/]", "a b$"):
        assert str(tmp_path / name) in run(*COMMANDS["sample"], "--out", tmp_path / name)


def test_figures_take_the_folder_that_the_command_was_given(tmp_path: Path) -> None:
    run(*COMMANDS["demo"], "--out", tmp_path / "demo")
    (tmp_path / "demo/class/figures/psnr-flops.svg").unlink()
    assert str(tmp_path / "demo/class/figures/psnr-flops.svg") in run("figures", tmp_path / "demo")
    assert (tmp_path / "demo/class/figures/psnr-flops.svg").is_file()
    run("figures", tmp_path / "demo/class")
    assert "--module is for an analysis" in refused("figures", tmp_path / "demo", "--module", "blocks.0")
    (tmp_path / "empty").mkdir()
    assert "empty holds no results" in refused("figures", tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    assert "file is a file: give the folder" in refused("figures", tmp_path / "file")


def test_a_module_that_is_not_there_is_said_after_the_first_batch(tmp_path: Path) -> None:
    asked = ("analyze", "--steps", "6", "--samples", "3", "--batch", "1", "--out", tmp_path)
    name = "transformer_blocks.0.atn1"
    assert "did you mean 'transformer_blocks.0.attn1'?" in refused(*asked, "--module", name)
    assert len(list((tmp_path / "parts").iterdir())) == 1
    run(*asked, "--module", "transformer_blocks.0.attn1")
    assert load(tmp_path).about["samples"] == 3
