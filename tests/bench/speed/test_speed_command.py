"""`relcache bench speed`: the real classes with random weights, few blocks and small sizes."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_dit
from typer.testing import CliRunner

import relcache
from relcache.bench.comparison.entries import choose
from relcache.bench.rivals.registry import all_rivals
from relcache.bench.sampling.budgets import TriedThresholds
from relcache.bench.sampling.scale import live_bytes
from relcache.bench.speed.contestants import at_interval, methods_at
from relcache.bench.speed.counting import count
from relcache.bench.speed.python_cost import python_cost
from relcache.bench.speed.speed import contestants_for, race
from relcache.bench.speed.subjects import SUBJECTS, Course, calls_of
from relcache.cli.app import app
from relcache.methods import method_from_config, method_from_text
from relcache.models import SPECS

RUNNER = CliRunner()


def course(steps: int) -> Course:
    model = tiny_dit(blocks=3)
    spec = next(spec for spec in SPECS if spec.class_name == "DiTTransformer2DModel")
    return Course("tiny", model, spec, calls_of(model, spec, relcache.Size(2, 8, 8), steps))


def test_every_contestant_has_the_same_full_steps_and_leaves_no_trace() -> None:
    track = course(20)
    names = ("diffusers-taylorseer-2", "first-block-cache", "dbcache")
    peers = [all_rivals()[name] for name in names]
    methods = methods_at(choose("fora,taylorseer-2,rcs-1,rfc-2"), ("module", "block", "stack"))
    known: dict[str, TriedThresholds] = {}
    chosen = contestants_for(track, methods, peers, 8, known)
    assert {n for n, found in known.items() if found.tried} == {"first-block-cache", "dbcache"}
    with torch.no_grad():
        before = track.model(**track.calls[0], return_dict=False)[0]
    gc.unfreeze()  # the race leaves nothing frozen, so that other tests' tensors count before it as well
    held = live_bytes()
    rows = race(track, chosen, rounds=1)
    assert live_bytes() <= held
    with torch.no_grad():
        assert torch.equal(track.model(**track.calls[0], return_dict=False)[0], before)
    assert [row["method"] for row in rows[:3]] == ["as it is", "fora, module", "taylorseer-2, module"]
    assert [row["nfc"] for row in rows] == [20] + [8] * 12 + [8] * len(peers)
    assert [row["rival"] for row in rows] == [False] * 13 + [True] * len(peers)
    by_name = {row["method"]: row for row in rows}
    for row in rows[1:]:
        assert row["cached_ms"] > 0
        assert row["of_ideal_least"] <= row["of_ideal"] <= row["of_ideal_most"]
    feature = 2 * 16 * 16 * 4  # rows, tokens, channels, bytes
    assert feature <= by_name["fora, stack"]["held_gb"] * 1e9 <= 2.1 * feature  # and the sample of the last step
    assert by_name["taylorseer-2, module"]["held_gb"] * 1e9 == pytest.approx(3 * 6 * feature, rel=0.1)
    assert by_name["diffusers TaylorSeer, m=2"]["held_gb"] * 1e9 == pytest.approx(3 * 6 * feature, rel=0.1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dit = SUBJECTS["dit"]
    monkeypatch.setitem(SUBJECTS, "dit", dit._replace(config=dit.config | dit.tiny))
    asked = ["bench", "speed", "--model", "dit", "--blocks", 2, "--size", 32, "--batch", 2, "--steps", 6]
    asked += ["--nfc", "3,4"]
    asked += ["--methods", "fora,rfc-1", "--granularity", "module,stack", "--rounds", 1, "--peers", "--out", tmp_path]
    result = RUNNER.invoke(app, [str(part) for part in asked])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "speed-dit/table.json").read_text())
    assert "DiTTransformer2DModel, 2 blocks, 32 x 32, batch 2, float32" in found["about"]
    rows = found["rows"]
    assert [row["nfc"] for row in rows if not row["rival"]] == [6, 3, 3, 3, 3, 4, 4, 4, 4]
    rivals = [row["method"] for row in rows if row["rival"]]
    half = len(rivals) // 2
    assert rivals[:half] == rivals[half:]
    assert {"diffusers TaylorSeer, m=1", "diffusers FirstBlockCache", "cache-dit DBCache"} <= set(rivals)
    assert not any("no cache" in name for name in rivals)
    text = (tmp_path / "speed-dit/table.md").read_text()
    assert "| rfc-1, stack |" in text
    assert "of the ideal" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "dti"], "did you mean 'dit'?"),
        (["--model", "flux", "--blocks", "2"], "flux has blocks of 2 kinds; --blocks names 1"),
        (["--blocks", "many"], "--blocks takes all, or numbers"),
        (["--granularity", "modul", "--blocks", "1", "--size", "32"], "the granularity is one of"),
        (["--methods", "rfc:ordr=1", "--blocks", "1", "--size", "32"], "did you mean 'order'?"),
        (["--dtype", "int8"], "unknown dtype 'int8': there are float32, bfloat16, float16"),
        (["--nfc", "2"], "--nfc is above the warm-up, 2"),
        (
            ["--methods", "fora:interval=3"],
            "fora-interval-3 has a budget of its own: leave that out, --nfc sets the budget",
        ),
        (["--methods", "full"], "names no method besides full compute"),
        (["--size", "7"], "--size of random weights takes multiples of 16 pixels, got '7'"),
        (["--size", "32x64"], "dit makes square pictures"),
        (["--frames", "9"], "--frames has no meaning with dit"),
        (["--model", "hunyuan", "--frames", "6"], "one more than a multiple of 4"),
        (["--model", "small-flux"], "for small-flux: relcache bench race --model small-flux"),
        (["--model", "someone/model"], "relcache bench race --model someone/model"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["bench", "speed", *arguments])
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.output.split())


def test_the_command_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = SUBJECTS["flux"]._replace(
        config=SUBJECTS["flux"].config | {"num_layers": 1, "num_single_layers": 1}, size=relcache.Size(1, 8, 8, text=16)
    )
    monkeypatch.setitem(SUBJECTS, "flux", few)
    asked = ["bench", "speed", "--model", "flux", "--count", "--methods", "rfc-1", "--out", str(tmp_path)]
    result = RUNNER.invoke(app, asked)
    assert result.exit_code == 0, result.output
    module, block, stack = json.loads((tmp_path / "count-flux/table.json").read_text())["rows"]
    assert stack["cached_gb"] < block["cached_gb"] < module["cached_gb"] < module["full_gb"]
    assert stack["cached_kernels"] < module["cached_kernels"]
    assert stack["held_gb"] < block["held_gb"] < module["held_gb"]
    assert 0 < stack["here_ms"] < module["here_ms"]
    assert (module["units"], stack["units"]) == (4, 1)
    assert module["unit_calls"] == module["step_calls"] / 4 > 10
    assert module["unit_us"] >= 0


def test_counts_of_a_cached_step() -> None:
    """Reuse copies the feature; each term of a forecast is read once, and its sum written for each pass."""
    subject = SUBJECTS["dit"]
    small = subject._replace(config=subject.config | {"num_layers": 2, "sample_size": 8}, size=relcache.Size(2, 8, 8))
    feature = 2 * 16 * 1152 * 4
    found = {
        text: count(small, method_from_text(text), torch.float32)
        for text in (
            "fora:interval=4",
            "taylorseer:order=1,interval=4",
            "taylorseer:order=1,interval=4,granularity=stack",
            "rcs:order=1,threshold=0.1",
            "rcs:order=1,threshold=0.1,granularity=stack",
        )
    }
    reuse, taylor, stack, rcs, rcs_stack = found.values()
    assert taylor["cached_bytes"] - reuse["cached_bytes"] == 4 * (3 - 2) * feature
    assert taylor["held_bytes"] == 2 * reuse["held_bytes"] == 2 * 4 * feature
    assert stack["held_bytes"] == 2 * feature
    assert stack["cached_bytes"] < reuse["cached_bytes"]
    assert stack["cached_flops"] < reuse["cached_flops"] < reuse["full_flops"]
    # the copy of the input; the error: the two terms and the sum, what it lies off by, and two sums of absolute values
    assert 14 * feature <= rcs["cached_bytes"] - taylor["cached_bytes"] < 14.1 * feature
    assert rcs["cached_flops"] == taylor["cached_flops"]
    assert rcs_stack["cached_flops"] > stack["cached_flops"], "it is read behind the first block's modulation"


def test_python_of_a_cached_step() -> None:
    """Calls grow with the units; the calls of a step do not depend on what ran before."""
    dit, fora = SUBJECTS["dit"], method_from_text("fora:interval=4")
    found = {
        blocks: python_cost(dit._replace(config=dit.config | {"num_layers": blocks}), fora) for blocks in (1, 2, 3)
    }
    assert [cost["units"] for cost in found.values()] == [2, 4, 6]
    calls = [cost["calls"] for cost in found.values()]
    assert calls[2] - calls[1] == calls[1] - calls[0] > 0


def test_options_of_a_method_reach_the_race() -> None:
    """Whatever a method holds beside its budget stays as it was given."""
    (chosen,) = methods_at(choose("rfc:order=1,granularity=stack,cache_dtype=int8,token_stride=3"), ("module", "block"))
    assert chosen.config["granularity"] == "stack"
    held = at_interval(method_from_config({**chosen.config}), 5, 50)
    assert (held.granularity, held.cache_dtype, held.schedule.longest_gap) == ("stack", "int8", 5)
    assert held.schedule.token_stride == held.forecaster.token_stride == 3
    assert at_interval(method_from_text("taylorseer:order=1,phase=3,interval=4"), 5, 50).schedule.phase == 3
