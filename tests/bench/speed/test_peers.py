"""Other libraries' methods: as many full steps as asked for, and no trace once they are disabled."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import pytest
import torch
from families import flux, hunyuan_video
from relcache.bench.speed.peers import PEERS
from tiny import tiny_dit
from torch import nn
from typer.testing import CliRunner

import relcache
from relcache.bench.sampling.budgets import count_full_steps
from relcache.bench.sampling.stopwatch import timed
from relcache.bench.speed.speed import contestants_for
from relcache.bench.speed.subjects import Course, calls_of
from relcache.cli.app import app
from relcache.models import SPECS

STEPS, NFC = 12, 5


def course(name: str) -> Course:
    """A loop on a small model of the family; its features move smoothly."""
    torch.manual_seed(0)
    if name == "dit":
        model: Any = tiny_dit(blocks=3)
        size = relcache.Size(2, 8, 8)
    else:
        family = flux.FAMILY if name == "flux" else hunyuan_video.FAMILIES[0]
        model, size = family.model(), family.size
    spec = next(spec for spec in SPECS if spec.class_name == type(model).__name__)
    return Course(name, model, spec, calls_of(model, spec, size, STEPS))


def state(model: nn.Module) -> dict[str, tuple[list[str], list[str]]]:
    """Names of the attributes and of the submodules of every module."""
    return {name: (sorted(vars(module)), list(module._modules)) for name, module in model.named_modules()}


@pytest.fixture(scope="module", params=["dit", "flux", "hunyuan"])
def track(request: pytest.FixtureRequest) -> Course:
    return course(request.param)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@torch.no_grad()
def test_full_steps_and_no_trace(track: Course, peer: Any) -> None:
    def run() -> tuple[list[torch.Tensor], int]:
        with timed(track.model, track.spec) as laps:
            made = [track.model(**call, return_dict=False)[0] for call in track.calls]
        return made, laps.full

    before, everything = run()
    assert everything == STEPS
    attributes = state(track.model)
    (contestant,) = contestants_for(track, [], [peer], NFC, known := {})
    for _ in range(2):
        with contestant.enabled(track.model):
            cached, full = run()
        after, everything = run()
        assert everything == STEPS
        assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
        assert state(track.model) == attributes
        assert torch.equal(cached[0], before[0])
        assert not all(torch.equal(left, right) for left, right in zip(before, cached, strict=True))
        if peer.has_threshold:
            tried = known[peer.name].tried
            assert full == tried[contestant.budget["threshold"]]
            assert abs(full - NFC) == min(abs(found - NFC) for found in tried.values())
        else:
            assert full == count_full_steps(int(contestant.budget["interval"]), STEPS, peer.phase)
            assert abs(full - NFC) <= 1


@torch.no_grad()
def test_an_error_within_leaves_no_trace() -> None:
    track = course("dit")
    attributes = state(track.model)
    for contestant in contestants_for(track, [], PEERS, NFC, {}):
        with suppress(InterruptedError), contestant.enabled(track.model):
            track.model(**track.calls[0])
            raise InterruptedError
        assert state(track.model) == attributes


def test_thresholds_that_were_tried_are_not_tried_again() -> None:
    track, known, told = course("dit"), {}, []
    peer = next(peer for peer in PEERS if peer.name == "cache-dit DBCache")
    first = contestants_for(track, [], [peer], NFC, known, told.append)
    assert first[0].budget == {"threshold": known[peer.name].nearest(NFC)}
    contestants_for(track, [], [peer], NFC, known, told.append)
    contestants_for(track, [], [peer], 3, known, told.append)
    assert len(told) == len(known[peer.name].tried) - 1  # a threshold of 0 needs no run


def test_without_cache_dit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    asked = ["bench", "speed", "--blocks", "2", "--size", "32", "--batch", "1", "--peers", "--steps", "5", "--nfc", "3"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1, result.output
    assert 'pip install "relcache[peers]"' in " ".join(result.output.split())
