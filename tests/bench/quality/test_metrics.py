"""Metrics against their definitions, written out, and against distances known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from relcache.bench.quality.metrics.pair import HIGHEST_PSNR, psnr, ssim


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
