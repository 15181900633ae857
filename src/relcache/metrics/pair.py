"""Pictures against the pictures of the same seeds made with full compute. Computed by torchmetrics, per picture."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

HIGHEST_PSNR = 100.0  # dB; identical pictures would have an infinite one and spoil a mean


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, shape (n,), at most `HIGHEST_PSNR`; of a clip its frames' mean.

    Args:
        images, references: (n, channels, height, width) or (n, frames, channels, height, width) in [0, 1].
    """
    if images.ndim == 5:
        return psnr(images.flatten(0, 1), references.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
    ratio = peak_signal_noise_ratio(images, references, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratio.clamp(max=HIGHEST_PSNR)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each picture, shape (n,); of a clip, the frames' mean.

    The window is a Gaussian of sigma 1.5, as in Wang et al. 2004.

    Args:
        images, references: (n, channels, height, width) or (n, frames, channels, height, width) in [0, 1].
    """
    if images.ndim == 5:
        return ssim(images.flatten(0, 1), references.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
    similarity = structural_similarity_index_measure(images, references, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity.reshape(-1)
