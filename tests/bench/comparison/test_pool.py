"""Work spread over processes: the same files, to the last bit, from one process or two, and from two of which one dies.

With Ray, which is in the extra `ray`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.comparison.comparison import Comparison
from relcache.bench.comparison.pool import Cluster, make_pool
from relcache.bench.comparison.prepare import Arguments, prepare
from relcache.bench.comparison.work import Work
from relcache.cli.app import app

ASKED = Arguments(
    methods="fora,rcs-1", nfc="5", samples=8, steps=10, batch=2, calibration_samples=2, threads=1, device="cpu"
)


CLOCKS = ("seconds", "denoising", "full_call", "began", "memory", "held")


def comparison(out: Path) -> Comparison:
    return prepare(SMALL["class"], ASKED, out)


def results(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """What every sample and measure holds, without what a clock or a counter of memory says."""
    known = {
        path.relative_to(out).as_posix(): {"pixels": np.asarray(Image.open(path))} for path in out.glob("runs/**/*.png")
    }
    for path in sorted(out.rglob("*.npz")):
        with np.load(path) as arrays:
            known[path.relative_to(out).as_posix()] = {
                name: arrays[name] for name in arrays.files if name not in CLOCKS
            }
    return known


def assert_equal(found: Path, expected: Path) -> None:
    one, two = results(found), results(expected)
    assert one.keys() == two.keys()
    for name, arrays in two.items():
        assert arrays.keys() == one[name].keys()
        for key, values in arrays.items():
            assert np.array_equal(one[name][key], values), (name, key)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    made = comparison(out)
    with make_pool(made.settings.setup) as pool:
        made.run(pool)
    return out


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="needs Ray, from the extra ray")
    with make_pool(comparison(Path("unused")).settings.setup, "2") as pool:
        yield pool


def test_two_workers_of_which_one_dies(cluster: Cluster, alone: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL over its work; what it was at is done again, and all is as one process makes it."""
    told: list[str] = []
    finished: list[Work] = []
    victims = cluster.processes()
    made = comparison(tmp_path)
    made.announce = told.append

    def advance(count: int) -> None:
        if count and not finished:
            os.kill(victims[0], signal.SIGKILL)
        if count:
            finished.append(count)

    made.advance = advance
    made.run(cluster)
    assert any("a worker died" in text for text in told)
    assert victims[0] not in cluster.processes()
    assert_equal(tmp_path, alone)


def test_a_killed_driver_goes_on(alone: Path, tmp_path: Path) -> None:
    """The command is killed in its middle; the same command, with two workers, ends with the same files."""
    pytest.importorskip("ray", reason="needs Ray, from the extra ray")
    asked = [
        "bench", "class-conditional", "--preset", "small", "--methods", "fora,rcs-1",
        "--nfc", "5", "--samples", "8", "--steps", "10", "--batch", "2", "--calibration-samples", "2",
        "--threads", "1", "--device", "cpu", "--out", str(tmp_path),
    ]  # fmt: skip
    command = [sys.executable, "-m", "relcache", *asked]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        until = time.monotonic() + 240
        while len(list(tmp_path.rglob("*/full-*/*.npz"))) < 3:
            assert driver.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        driver.kill()
    assert not (tmp_path / "class-conditional/table.json").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    again = CliRunner().invoke(app, [*asked, "--workers", "2"])
    assert again.exit_code == 0, again.output
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    assert_equal(tmp_path / "class-conditional", alone)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "http://somewhere"])
def test_wrong_workers(workers: str) -> None:
    with pytest.raises(ValueError, match="--workers takes a number, ray://HOST:PORT or auto"):
        make_pool(comparison(Path("unused")).settings.setup, workers)
