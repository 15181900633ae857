"""Metrics against their definitions, written out, and against distances known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from relcache.metrics.frechet import frechet_distance
from relcache.metrics.pair import HIGHEST_PSNR, psnr, ssim


def test_psnr_is_ten_log_of_the_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    images, references = torch.rand(3, 1, 28, 28, generator=generator), torch.rand(3, 1, 28, 28, generator=generator)
    expected = [-10 * math.log10(float(((a - b) ** 2).mean())) for a, b in zip(images, references, strict=True)]
    assert psnr(images, references).tolist() == pytest.approx(expected, rel=1e-5)
    assert psnr(images, images).tolist() == [HIGHEST_PSNR] * 3


def test_ssim_is_one_for_the_same_picture_and_falls_with_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 28, 28, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    little, much = (ssim((images + scale * noise).clamp(0, 1), images) for scale in (0.05, 0.3))
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1])
    assert (much < little).all()
    assert (little < 1).all()


def test_metrics_do_not_depend_on_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    images, references = torch.rand(4, 1, 28, 28, generator=generator), torch.rand(4, 1, 28, 28, generator=generator)
    for metric in (psnr, ssim):
        alone = torch.cat([metric(images[i : i + 1], references[i : i + 1]) for i in range(4)])
        assert torch.allclose(alone, metric(images, references), rtol=1e-6)


def test_a_clip_has_the_mean_of_its_frames() -> None:
    generator = torch.Generator().manual_seed(2)
    clips, references = (torch.rand(2, 3, 3, 16, 16, generator=generator) for _ in range(2))
    for metric in (psnr, ssim):
        expected = torch.stack(
            [metric(clip, reference).mean() for clip, reference in zip(clips, references, strict=True)]
        )
        assert torch.allclose(metric(clips, references), expected, rtol=1e-6)


def test_frechet_distance_of_two_gaussians() -> None:
    """Diagonal Gaussians: ‖μ₁ - μ₂‖² + Σ (σ₁ - σ₂)². The samples are whitened so that their moments are exact."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(raw.T))).T
    scales, shift = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]), torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0])
    expected = float(shift.square().sum() + (scales - 1).square().sum())
    assert frechet_distance(white * scales + shift, white) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_against_the_matrix_square_root() -> None:
    generator = torch.Generator().manual_seed(3)
    left = torch.randn(300, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    right = torch.randn(200, 6, generator=generator) + 0.3
    first, second = (np.cov(part.double().numpy().T) for part in (left, right))
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root)).sum()
    mean = ((left.double().mean(0) - right.double().mean(0)) ** 2).sum().item()
    expected = mean + np.trace(first) + np.trace(second) - 2 * cross
    assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="two samples on each side, got 1 and 5"):
        frechet_distance(torch.randn(1, 3), torch.randn(5, 3))
