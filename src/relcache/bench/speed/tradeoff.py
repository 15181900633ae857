"""Measure quality and time of methods and peers on a real pipeline, with the same prompts and seeds.

A heat has all contestants at one number of full steps. Each round runs all heats in one process, with full compute
before and after each heat. So shares of its time stay valid if the machine's speed drifts. A first round warms up: it
gives pictures, full steps and bytes, and the other rounds give times. Times are of denoising, from the
transformer's first call to its last.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from relcache.bench.quality.metrics.pair import psnr, ssim
from relcache.bench.sampling.budgets import TriedThresholds, at_budget
from relcache.bench.speed.contestants import Contestant, NamedMethod, only_transformer, ours, peer_at
from relcache.bench.speed.equal_time import with_best_peer
from relcache.bench.speed.peers import Peer
from relcache.bench.speed.scale import Scale
from relcache.bench.speed.trial import FULL, TimedRun, Trial


def heat_at(
    nfc: int,
    methods: Sequence[NamedMethod],
    peers: Sequence[Peer],
    trial: Trial,
    known: dict[str, TriedThresholds],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Contestant]:
    """Return the methods and peers, each with the interval or threshold that gives it `nfc` full steps on `trial`.

    `trial` has calibration seeds, for which no result is reported. `known` keeps the tried thresholds by name.
    """
    found = []
    for name, config in methods:
        tell(f"{name}: finding the threshold")
        method = at_budget(
            config, nfc, trial.sampler, trial.seeds, trial.conditions, known=known.setdefault(name, TriedThresholds())
        )
        found.append(ours(name, method))
    steps, spec = trial.sampler.steps, trial.spec

    def count(contestant: Contestant) -> float:
        return round(trial.run(contestant).full_share * steps, 6)

    for peer in peers:
        tell(f"{peer.name}: finding the threshold")
        found.append(peer_at(peer, nfc, steps, spec, count, known.setdefault(peer.name, TriedThresholds())))
    return found


def check(trial: Trial, peers: Sequence[Peer]) -> None:
    """Raise ValueError if the pipeline cannot be timed or a peer does not support it."""
    model = only_transformer(trial.sampler.pipeline)
    for peer in peers:
        peer.check(model, trial.spec)


@dataclass
class HeatRecord:
    """A contestant's first run in a heat, and its seconds and shares of full compute's time in each round."""

    contestant: Contestant
    target: int | None
    first: TimedRun
    psnr: float | None = None
    ssim: float | None = None
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)

    def row(self, steps: int, samples: int, full_call: float) -> dict[str, Any]:
        """Return a row of the table; `full_call` is the seconds of a call of full compute."""
        nfc = self.first.full_share * steps
        share = statistics.median(self.shares)
        cached = statistics.median(self.cached) if self.cached else None
        held = self.first.held
        return {
            "method": self.contestant.name,
            "peer": self.contestant.is_peer,
            "nfc_target": self.target,
            "nfc": nfc,
            "interval": self.contestant.budget.get("interval"),
            "threshold": self.contestant.budget.get("threshold"),
            "psnr": self.psnr,
            "ssim": self.ssim,
            "seconds": statistics.median(self.seconds) / samples,
            "seconds_least": min(self.seconds) / samples,
            "seconds_most": max(self.seconds) / samples,
            "share": share,
            "share_least": min(self.shares),
            "share_most": max(self.shares),
            "ideal_share": nfc / steps,
            "of_ideal": share * steps / nfc,
            "cached_ms": None if cached is None else 1e3 * cached,
            "cached_share": None if cached is None else cached / full_call,
            "held_gb": None if held is None else held / 1e9,
        }


def race_pipeline(
    trial: Trial,
    heats: Mapping[int, Sequence[Contestant]],
    rounds: int,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Return rows of full compute and each heat's contestants, with the best peer at equal time for each method."""
    reference = trial.run(FULL)
    tell(FULL.name)
    whole = HeatRecord(FULL, None, reference, shares=[1.0])
    records: dict[int, list[HeatRecord]] = {}
    with Scale() as scale:
        for nfc, contestants in heats.items():
            for contestant in contestants:
                first = trial.run(contestant, scale, reference.calls)
                near, alike = (float(measure(first.images, reference.images).mean()) for measure in (psnr, ssim))
                record = HeatRecord(contestant, nfc, first._replace(images=Tensor()), near, alike)
                records.setdefault(nfc, []).append(record)
                tell(contestant.name)
    full_calls: list[float] = []

    def full_compute() -> float:
        run = trial.run(FULL)
        whole.seconds.append(run.seconds)
        full_calls.extend(run.full)
        tell(FULL.name)
        return run.seconds

    for _ in range(rounds):
        before = full_compute()
        for heat in records.values():
            runs = []
            for record in heat:
                runs.append(trial.run(record.contestant))
                tell(record.contestant.name)
            after = full_compute()
            for record, run in zip(heat, runs, strict=True):
                record.seconds.append(run.seconds)
                record.shares.append(2 * run.seconds / (before + after))
                record.cached += run.cached
            before = after
    once = statistics.median(full_calls)
    all_records = [whole, *(record for heat in records.values() for record in heat)]
    return with_best_peer([record.row(trial.sampler.steps, len(trial.seeds), once) for record in all_records])


def runs_of(heats: int, contestants: int, rounds: int) -> int:
    """Return the number of runs that a race makes and reports."""
    return 1 + heats * contestants + rounds * (1 + heats * (contestants + 1))


COLUMNS = (
    ("method", "method", ""),
    ("full", "nfc", ".4g"),
    ("PSNR", "psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("s", "seconds", ".3f"),
    ("of full", "share", ".1%"),
    ("least", "share_least", ".1%"),
    ("most", "share_most", ".1%"),
    ("of ideal", "of_ideal", ".3f"),
    ("cached", "cached_share", ".1%"),
    ("held, GB", "held_gb", ".4f"),
    ("peer, dB", "peer_psnr", ".2f"),
    ("lead", "lead", "+.2f"),
    ("best peer at equal time", "best_peer", ""),
)
"""Columns of the table: heading, key in a row, format."""
