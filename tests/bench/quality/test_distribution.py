"""Distances of distributions: against definitions written out another way, and against known distributions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relcache.bench.quality.metrics.batches import Batch
from relcache.bench.quality.metrics.distribution import (
    BLOCK,
    Gaussian,
    blocks,
    fit,
    frechet_distance,
    inception_score,
    precision_recall,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(sizes=st.lists(st.integers(1, 900), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_moments_do_not_depend_on_the_parts(sizes: list[int], seed: int) -> None:
    """To the last bit; and they are numpy's to 1e-9."""
    rows = random(sum(sizes) + 2, 5, seed=seed) * 3 + 100
    parts, whole = fit([*rows[:-2].split(sizes), rows[-2:]]), fit([rows])
    assert torch.equal(parts.mean, whole.mean)
    assert torch.equal(parts.covariance, whole.covariance)
    exact = rows.double().numpy()
    np.testing.assert_allclose(whole.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance.numpy(), np.cov(exact.T), rtol=1e-9, atol=1e-9)


def test_blocks_have_every_row_once_and_in_order() -> None:
    rows = torch.arange(3 * BLOCK + 5)
    again = list(blocks(rows.split(700)))
    assert [len(block) for block in again] == [BLOCK] * 3 + [5]
    assert torch.equal(torch.cat(again), rows)
    assert list(blocks([])) == []


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal ones: |m1 - m2|^2 + sum (s1 - s2)^2."""
    scales, shift = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0]).double(), torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0]).double()
    first = Gaussian(shift, torch.diag(scales.square()))
    second = Gaussian(torch.zeros(5).double(), torch.eye(5).double())
    expected = float(shift.square().sum() + (scales - 1).square().sum())
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rows", [40, 400])
def test_frechet_distance_against_scipy(rows: int) -> None:
    """As the published evaluators compute it: the matrix root of the covariances' product."""
    linalg = pytest.importorskip("scipy.linalg")
    left = random(rows, 64, seed=1) @ random(64, 64, seed=2)
    right = random(rows + 50, 64, seed=3) + 0.3
    first, second = fit([left]), fit([right])
    one, other = (np.cov(part.double().numpy().T) for part in (left, right))
    root = linalg.sqrtm(one @ other + (1e-10 * np.eye(64) if rows < 64 else 0)).real
    apart = left.double().numpy().mean(0) - right.double().numpy().mean(0)
    expected = apart @ apart + np.trace(one) + np.trace(other) - 2 * np.trace(root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_against_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    left, right = random(300, 20, seed=1) * 2, random(200, 20, seed=2) + 1
    moments = [(part.double().mean(0), torch.cov(part.double().mT)) for part in (left, right)]
    expected = float(fid._compute_fid(*moments[0], *moments[1]))
    assert frechet_distance(fit([left]), fit([right])) == pytest.approx(expected, rel=1e-6)


def test_bad_features() -> None:
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        fit([torch.zeros(1, 3)])
    with pytest.raises(ValueError, match="at least two samples, got 0"):
        fit([])
    with pytest.raises(ValueError, match="features 1024 to 1025 are not all finite"):
        fit([torch.zeros(BLOCK, 3), torch.tensor([[0.0, 0.0, math.nan], [0.0, 0.0, 0.0]])])
    with pytest.raises(ValueError, match="widths 3 and 4"):
        frechet_distance(fit([torch.zeros(5, 3)]), fit([torch.zeros(5, 4)]))


def test_inception_score() -> None:
    """1 where every picture is the same, the number of classes where each is certain and all come as often."""
    certain = torch.eye(10).repeat(20, 1)
    assert inception_score([certain]) == pytest.approx(10)
    assert inception_score([torch.full((50, 10), 0.1)]) == pytest.approx(1)
    probabilities = random(230, 7).mul(2).softmax(1).double()
    scores = []
    for part in (probabilities[:100], probabilities[100:200], probabilities[200:]):
        p = part.numpy()
        scores.append(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0))), 1))))
    assert inception_score(probabilities.split(37), split=100) == pytest.approx(np.mean(scores), rel=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        inception_score([])


def brute(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
    """Share of points inside a ball around a centre, one pair after the other."""
    radii = [sorted(float(np.linalg.norm(a - b)) for b in centres)[neighbours] for a in centres]
    inside = [
        any(float(np.linalg.norm(p - c)) <= radius for c, radius in zip(centres, radii, strict=True)) for p in points
    ]
    return sum(inside) / len(inside)


def test_precision_and_recall() -> None:
    references, samples = random(60, 6, seed=1), random(45, 6, seed=2) * 0.6 + 0.3
    precision, recall = precision_recall(references, samples)
    assert precision == pytest.approx(brute(samples.double().numpy(), references.double().numpy(), 3), abs=1e-12)
    assert recall == pytest.approx(brute(references.double().numpy(), samples.double().numpy(), 3), abs=1e-12)
    assert 0 < recall < precision <= 1
    assert precision_recall(references, references) == (1.0, 1.0)
    assert precision_recall(references, samples + 100) == (0.0, 0.0)
    with pytest.raises(ValueError, match="3 neighbours need more samples on each side"):
        precision_recall(references, samples[:3])


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_batches_are_read_in_pieces(tmp_path: Path, save) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    statistics = {name: np.random.default_rng(1).random((4, 4) if "sigma" in name else 4) for name in
                  ("mu", "sigma", "mu_s", "sigma_s")}  # fmt: skip
    save(tmp_path / "batch.npz", pictures, **statistics)
    batch = Batch(tmp_path / "batch.npz")
    assert [len(part) for part in batch.pictures(32)] == [32, 32, 6]
    read = np.concatenate(list(batch.pictures(32)))
    assert (read.shape, read.dtype) == ((70, 8, 8, 3), np.uint8)
    assert np.array_equal(read, pictures)
    assert np.array_equal(batch.statistics["spatial"].covariance.numpy(), statistics["sigma_s"])
    assert np.array_equal(batch.statistics["features"].mean.numpy(), statistics["mu"])


def test_statistics_without_pictures(tmp_path: Path) -> None:
    batch = Batch(write(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3)))
    assert list(batch.pictures()) == []
    assert list(batch.statistics) == ["features"]


def test_batches_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.npz"):
        Batch(tmp_path / "none.npz")
    pictures = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
    whole = write(tmp_path / "whole.npz", arr_0=pictures)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.npz is damaged or cut short"):
        Batch(cut)
    content = bytearray(whole.read_bytes())
    content[3000] ^= 255
    wrong = tmp_path / "wrong.npz"
    wrong.write_bytes(content)
    with pytest.raises(ValueError, match=r"wrong\.npz is damaged"):
        list(Batch(wrong).pictures())
    with pytest.raises(ValueError, match=r"holds other; expected pictures as arr_0, or mu and sigma"):
        Batch(write(tmp_path / "other.npz", other=pictures))
    with pytest.raises(ValueError, match=r"float64 \(2, 8, 8, 3\); expected uint8"):
        Batch(write(tmp_path / "floats.npz", arr_0=np.zeros((2, 8, 8, 3))))
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 8, 8\); expected uint8 \(n, height, width, 3\)"):
        Batch(write(tmp_path / "first.npz", arr_0=np.zeros((2, 3, 8, 8), np.uint8)))
    with pytest.raises(ValueError, match=r"are \(3,\) and \(2, 2\); expected \(n,\) and \(n, n\)"):
        Batch(write(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.eye(2)))
    with pytest.raises(ValueError, match="are not all finite"):
        Batch(write(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3)))
