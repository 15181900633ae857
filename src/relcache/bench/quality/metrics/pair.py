"""Pictures against the pictures of the same seeds made with full compute. Computed by torchmetrics, per picture."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
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


def lpips(weights: str | Path | None = None, device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """Learned perceptual distance (Zhang et al., 2018), as the package lpips computes it with AlexNet.

    Args:
        weights: file of AlexNet's weights as torchvision distributes them; None lets torchvision download them. The
            package holds the rest.
        device: where the network runs.

    Returns:
        The distance of each picture, shape (n,), of a clip its frames' mean, for (n, channels, height, width) or
        (n, frames, channels, height, width) in [0, 1].

    Raises:
        ValueError: the package, or torchvision, is missing, or the weights cannot be loaded.
    """
    try:
        package = importlib.import_module("lpips")
    except ImportError as error:
        raise ValueError(f"LPIPS needs lpips and torchvision ({error}): pip install 'relcache[lpips]'") from error
    try:
        network = package.LPIPS(net="alex", pnet_rand=weights is not None, verbose=False)
        if weights is not None:
            alexnet = importlib.import_module("torchvision").models.alexnet()
            alexnet.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            slices = [getattr(network.net, f"slice{number}") for number in range(1, 6)]
            for given, kept in zip(alexnet.features, (m for part in slices for m in part), strict=False):
                kept.load_state_dict(given.state_dict())
    except Exception as error:
        raise ValueError(
            f"AlexNet's weights for LPIPS could not be loaded ({error}); give a file with --alexnet"
        ) from error
    network = network.to(device).eval().requires_grad_(False)

    def distance(images: Tensor, references: Tensor) -> Tensor:
        if images.ndim == 5:
            return distance(images.flatten(0, 1), references.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)
        pairs = zip(images.split(16), references.split(16), strict=True)
        return torch.cat([network(a.to(device), b.to(device), normalize=True).cpu().reshape(-1) for a, b in pairs])

    return distance
