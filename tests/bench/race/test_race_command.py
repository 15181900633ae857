"""`relcache bench race` on a pipeline in a folder: finished, killed and resumed, and its contestants elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline
from typer.testing import CliRunner

from relcache.bench.race.prepare import race_benchmark, race_columns
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.rivals.solvers import Solver
from relcache.cli.app import app

METHODS = "auto,fora,unipc,fewer-steps-beta,first-block-cache"
ASKED = [
    "bench", "race", "--methods", METHODS, "--nfc", "8,5,3", "--samples", "4", "--steps", "12", "--batch", "2",
    "--calibration-samples", "2", "--threads", "1", "--device", "cpu", "--exact-steps", "60",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(blocks=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("race")
    result = CliRunner().invoke(app, [*ASKED, "--model", str(model), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out / "race-tiny"


def race_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "race.json").read_text())


def timeless(race: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs without the numbers of a clock."""
    clocks = ("seconds", "share", "share_least", "share_most", "held_gb")
    return [{key: value for key, value in run.items() if key not in clocks} for run in race["runs"]]


def test_every_run_has_its_cost_and_its_qualities(finished: Path) -> None:
    race = race_in(finished)
    assert race["default"] == "relcache, default"
    assert race["unfit"] == {"no cache: the same, beta sigmas": "it is meant for models that predict velocity"}
    full, *runs = race["runs"]
    assert (full["title"], full["nfc"], full["psnr"]) == ("full compute", 12, None)
    assert len(runs) == 4 * 3 + 3
    assert [run["nfc"] for run in runs if run["method"] == "unipc"] == [8, 5, 3, 10, 6, 4]
    assert {run["group"] for run in runs} == {"relcache", "solver", "diffusers"}
    for run in runs:
        assert 0 < run["share_least"] <= run["share"] <= run["share_most"]
        mean, least, most = run["psnr"]
        assert least <= mean <= most
        assert run["exact"][0] > 5
        assert run["held_gb"] >= 0
        if run["method"] in ("auto", "unipc"):  # an interval or a threshold may miss the number
            assert run["nfc"] == run["nfc_target"]
    assert [duel["nfc"] for duel in race["equal_time"]] == [8, 5, 3]
    titles = {run["title"] for run in runs} - {"full compute", race["default"]}
    for duel in race["equal_time"]:
        placed = [other["title"] for other in duel["others"]] + duel["slower"] + duel["faster"]
        assert sorted(placed) == sorted(titles)  # each once; only those within the default's time have a lead
        own = next(run for run in runs if run["title"] == race["default"] and run["nfc"] == duel["nfc"])
        assert duel["share"] == own["share"]
        assert duel["default"] == {"psnr": own["psnr"], "exact": own["exact"]}
        for other in duel["others"]:
            shares = [run["share"] for run in runs if run["title"] == other["title"]]
            assert min(shares) <= duel["share"] <= max(shares)
            for key in ("psnr", "exact"):
                assert other[key]["lead"][0] == pytest.approx(own[key][0] - other[key]["value"][0])


def test_tables_figures_and_page(finished: Path) -> None:
    text = (finished / "race.md").read_text()
    assert "## At the time of 5 full steps" in text
    assert "- no cache: the same, beta sigmas: it is meant for models that predict velocity." in text
    assert (finished / "figures/race-psnr.png").exists()
    assert "diffusers FirstBlockCache" in (finished / "figures/race-exact.svg").read_text()
    page = (finished / "report.html").read_text()
    assert "At equal time" in page
    assert "relcache, default</td>" in page


def test_a_killed_race_goes_on(model: Path, finished: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command keeps all that was done, and ends with the same table."""
    asked = [*ASKED, "--model", str(model), "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "relcache", *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        until = time.monotonic() + 240
        while len(list(tmp_path.rglob("*/000000.npz"))) < 5:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        driver.kill()
    assert not list(tmp_path.rglob("race.json"))
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    assert timeless(race_in(tmp_path / "race-tiny")) == timeless(race_in(finished))
    before = (tmp_path / "race-tiny/race.json").read_bytes()
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert (tmp_path / "race-tiny/race.json").read_bytes() == before, "a race that is done is only read"


def test_a_rival_that_fails_ends_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is in the tables; once it is mended, the same command runs it."""

    class Broken(Solver):
        def enabled(self, pipeline_or_model: Any, options: Any, steps: int) -> Any:
            raise RuntimeError("out of order")

    asked = ["bench", "race", "--model", str(model), "--methods", "auto,unipc", "--nfc", "5", "--samples", "2"]
    asked += ["--steps", "10", "--calibration-samples", "1", "--device", "cpu", "--out", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setitem(all_rivals(), "unipc", Broken("unipc", "no cache: UniPC"))
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 0, result.output
        assert "not run: no cache: UniPC: RuntimeError: out of order" in " ".join(result.output.split())
    assert [run["method"] for run in race_in(tmp_path / "race-tiny")["runs"]] == ["full", "auto"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    race = race_in(tmp_path / "race-tiny")
    assert "exact" not in race["qualities"], "a folder's exact solution is left out unless it is asked for"
    assert race["unfit"] == {}
    assert [run["method"] for run in race["runs"]] == ["full", "auto", "unipc", "unipc"]


def test_a_rival_that_fails_at_one_number_keeps_the_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does one for which memory suffices in its trial, but not in a batch."""

    class Broken(Solver):
        def enabled(self, pipeline_or_model: Any, options: Any, steps: int) -> Any:
            if options["steps"] == 3:
                raise torch.OutOfMemoryError("out of memory")
            return super().enabled(pipeline_or_model, options, steps)

    asked = ["bench", "race", "--model", str(model), "--methods", "auto,unipc", "--nfc", "5,3", "--samples", "2"]
    asked += ["--steps", "10", "--calibration-samples", "1", "--device", "cpu", "--out", str(tmp_path)]
    with monkeypatch.context() as patched:
        patched.setitem(all_rivals(), "unipc", Broken("unipc", "no cache: UniPC", "UniPCMultistepScheduler"))
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 0, result.output
    race = race_in(tmp_path / "race-tiny")
    assert race["unfit"] == {"no cache: UniPC, 3 full steps": "OutOfMemoryError: out of memory"}
    assert [run["nfc"] for run in race["runs"] if run["method"] == "unipc"] == [5, 6, 4]
    assert CliRunner().invoke(app, asked).exit_code == 0
    race = race_in(tmp_path / "race-tiny")
    assert race["unfit"] == {}
    assert [run["nfc"] for run in race["runs"] if run["method"] == "unipc"] == [5, 3, 6, 4]


def test_the_papers_benchmarks_take_the_same_contestants(tmp_path: Path) -> None:
    asked = ["bench", "class-conditional", "--preset", "small", "--methods", METHODS, "--nfc", "5", "--samples", "4"]
    asked += ["--steps", "12", "--calibration-samples", "2", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "not run: fewer-steps-beta: it is meant for models that predict velocity" in " ".join(result.output.split())
    rows = json.loads((tmp_path / "class-conditional/table.json").read_text())
    assert [row["method"] for row in rows] == ["full", "auto", "fora", "unipc", "first-block-cache"]
    assert next(row for row in rows if row["method"] == "unipc")["nfc"] == 5


def test_a_rival_has_no_part_in_other_commands(tmp_path: Path) -> None:
    for command in (["bench", "speed"], ["analyze"]):
        result = CliRunner().invoke(app, [*command, "--methods", "unipc", "--out", str(tmp_path)])
        assert result.exit_code == 1, result.output
        assert "unipc is no method of relcache: it takes part in relcache bench race" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "small-flx"], "small-flx is no shipped model, no folder of a pipeline and no hub id"),
        (["--methods", "unpic"], "did you mean 'unipc'?"),
        (["--methods", "first-block-cache:treshold=1"], "did you mean 'threshold'?"),
        (["--methods", "unipc:steps=few"], "steps of unipc is a number, at least 0; got 'few'"),
        (["--methods", "unipc:steps=2.5"], "steps of unipc is a whole number, at least 1; got 2.5"),
        (["--methods", "first-block-cache:threshold=-1"], "is a number, at least 0; got -1"),
        (["--methods", "dbcache-policy:policy=7"], "policy of dbcache-policy is one of 0, 1, 2, 3; got 7"),
        (["--prompts", "p.txt", "--model", "dit-fashion-mnist"], "this one takes classes"),
        (["--alexnet", "nowhere.pth"], "there is no file nowhere.pth"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "race", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("pipeline", "judge"),
    [
        ("FluxPipeline", "image-reward"),
        ("WanPipeline", "vbench"),
        ("DiTPipeline", ""),
        ("OtherPipeline", "image-reward"),
    ],
)
def test_judges_of_other_models_where_they_are_installed(
    pipeline: str, judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert list(race_benchmark(str(tmp_path), None, None).measures) == ["pair"]
    monkeypatch.setattr("relcache.bench.race.prepare.unavailable", lambda name: None)
    benchmark = race_benchmark(str(tmp_path), None, None)
    assert list(benchmark.measures) == ["pair", judge] if judge else ["pair"]
    assert list(race_columns(benchmark)) == ["vbench"] * (judge == "vbench")
