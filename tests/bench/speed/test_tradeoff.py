"""`relcache bench speed` on a pipeline: quality beside measured time, and quality at equal time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_pipeline
from typer.testing import CliRunner

from relcache.bench.comparison.entries import choose
from relcache.bench.quality.metrics.pair import psnr
from relcache.bench.sampling.batches import Sampler
from relcache.bench.sampling.budgets import calibration_seeds, interval_for
from relcache.bench.speed import tradeoff
from relcache.bench.speed.contestants import methods_at
from relcache.bench.speed.equal_time import Point, quality_at, with_best_peer
from relcache.bench.speed.peers import PEERS
from relcache.bench.speed.trial import FULL, Trial
from relcache.cli.app import app
from relcache.methods import method_from_config

CURVE = [Point(0.4, 40.0), Point(0.2, 30.0), Point(0.3, 32.0)]


@pytest.mark.parametrize(
    ("time", "quality"),
    [(0.19, None), (0.2, 30.0), (0.25, 31.0), (0.3, 32.0), (0.375, 38.0), (0.4, 40.0), (0.9, 40.0)],
)
def test_quality_along_a_curve(time: float, quality: float | None) -> None:
    assert quality_at(time, CURVE) == pytest.approx(quality)


def test_a_curve_of_one_point_and_of_none() -> None:
    assert quality_at(0.5, [Point(0.5, 30.0)]) == 30.0
    assert quality_at(0.5, []) is None
    assert quality_at(0.5, [Point(0.5, 30.0), Point(0.5, 31.0)]) == 31.0


def test_the_best_peer_at_equal_time() -> None:
    def row(method: str, peer: bool, share: float, psnr: float | None) -> dict:
        return {"method": method, "peer": peer, "share": share, "psnr": psnr}

    nothing = (None, None, None)
    rows = with_best_peer(
        [
            row("full compute", False, 1.0, None),
            row("fast", False, 0.1, 20.0),
            row("mine", False, 0.25, 33.0),
            row("a", True, 0.2, 30.0),
            row("a", True, 0.3, 34.0),
            row("b", True, 0.24, 31.0),
        ]
    )
    assert [(row["peer_psnr"], row["best_peer"], row["lead"]) for row in rows] == [
        nothing, nothing, (pytest.approx(32.0), "a", pytest.approx(1.0)), nothing, nothing, nothing,
    ]  # fmt: skip


def test_a_race_on_a_pipeline() -> None:
    """Full steps, pictures and shares; what is ours makes the very pictures that sampling by it makes."""
    pipeline = tiny_pipeline(blocks=2)
    sampler = Sampler(pipeline, steps=10, batch=2, options={"guidance_scale": 1.5})
    trial, calibration = Trial(sampler, [0, 1, 2], [1, 2, 3]), Trial(sampler, calibration_seeds(2), [1, 2])
    methods = methods_at(choose("fora,rfc-1"), ("module", "stack"))
    known: dict = {}
    before = sampler.call([0, 1], [1, 2])
    peers = PEERS[1:6:2]
    heats = {nfc: tradeoff.heat_at(nfc, methods, peers, calibration, known) for nfc in (4, 10)}
    told: list[str] = []
    full, *rows = tradeoff.race_pipeline(trial, heats, 1, told.append)
    assert len(told) == tradeoff.runs_of(2, len(methods) + len(peers), 1)
    assert sampler.call([0, 1], [1, 2]).equal(before)
    assert (full["method"], full["nfc"], full["share"], full["psnr"], full["cached_share"]) == (
        "full compute", 10, 1.0, None, None,
    )  # fmt: skip
    assert [row["method"] for row in rows] == [*[name for name, _ in methods], *[peer.name for peer in peers]] * 2
    for row in rows:
        assert row["share_least"] <= row["share"] <= row["share_most"]
        assert row["of_ideal"] == pytest.approx(row["share"] / row["ideal_share"])
        assert row["psnr"] > 10
        assert row["held_gb"] > 0 or row["nfc"] == 10
    fora = rows[0]
    assert fora["nfc"] == 4
    assert fora["interval"] == interval_for(4, 10)
    method = method_from_config({**methods[0].config, "interval": fora["interval"]})
    made, whole = sampler.run(method, trial.seeds, trial.conditions), trial.run(FULL)
    assert fora["psnr"] == pytest.approx(float(psnr(made.images, whole.images).mean()))
    ours = [row for row in rows if not row["peer"]]
    assert {row["nfc"] for row in ours if row["nfc_target"] == 10} == {10}
    assert all(row["psnr"] == 100 for row in ours if row["nfc"] == 10)
    assert {row["nfc_target"]: row["threshold"] is None for row in rows if "rfc" in row["method"]} == {
        4: False,
        10: False,
    }


def test_the_command_on_a_folder(tmp_path: Path) -> None:
    tiny_pipeline(blocks=2).save_pretrained(tmp_path / "tiny-dit")
    asked = ["bench", "speed", "--model", tmp_path / "tiny-dit", "--steps", 8, "--nfc", "3,5", "--samples", 2]
    asked += [
        "--rounds",
        1,
        "--methods",
        "taylorseer-1",
        "--granularity",
        "stack",
        "--peers",
        "--calibration-samples",
        1,
    ]
    result = CliRunner().invoke(app, [str(part) for part in [*asked, "--out", tmp_path]])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "speed-tiny-dit"
    found = json.loads((folder / "table.json").read_text())
    assert "tiny-dit: 2 samples, 8 steps, batch 8, float32" in found["about"]
    rows = found["rows"]
    assert len(rows) == 1 + 2 * (1 + len(PEERS))
    assert "| best peer at equal time |" in (folder / "table.md").read_text()
    figure = folder / "figures/psnr-time.svg"
    drawn = figure.read_text()
    assert all(peer.name in drawn for peer in PEERS)
    figure.unlink()
    result = CliRunner().invoke(app, ["figures", str(folder)])
    assert result.exit_code == 0, result.output
    assert [line for line in figure.read_text().splitlines() if "<text" in line] == [
        line for line in drawn.splitlines() if "<text" in line
    ]


def test_prompts_are_asked_for(tmp_path: Path) -> None:
    """A pipeline that takes prompts, with none given: the error says so before anything is timed."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a small red circle\n")
    asked = ["bench", "speed", "--model", "dit-fashion-mnist", "--prompts", str(prompts), "--steps", "4", "--nfc", "3"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1, result.output
    assert "DiTPipeline takes classes, got the prompt" in " ".join(result.output.split())
