"""Compare each picture with full compute's picture of the same seed, by torchmetrics."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

HIGHEST_PSNR = 100.0  # dB; the PSNR of identical pictures is infinite and would spoil a mean


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Return each picture's peak signal-to-noise ratio in dB, float (n,), at most `HIGHEST_PSNR`.

    For a clip, average over its frames.

    Args:
        images, references: float (n, channels, height, width) or (n, frames, channels, height, width) in [0, 1].
    """
    if images.ndim == 5:
        return _frame_mean(psnr, images, references)
    ratio = peak_signal_noise_ratio(images, references, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratio.clamp(max=HIGHEST_PSNR)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Return each picture's structural similarity, float (n,).

    For a clip, average over its frames. The window is a Gaussian of sigma 1.5, as in Wang et al. 2004.
    The arguments are those of `psnr`.
    """
    if images.ndim == 5:
        return _frame_mean(ssim, images, references)
    similarity = structural_similarity_index_measure(images, references, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity.reshape(-1)


def _frame_mean(measure: Callable[[Tensor, Tensor], Tensor], images: Tensor, references: Tensor) -> Tensor:
    return measure(images.flatten(0, 1), references.flatten(0, 1)).unflatten(0, images.shape[:2]).mean(1)


def lpips(weights: str | Path | None = None, device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """Return the learned perceptual distance (Zhang et al., 2018), with AlexNet, as a function like `psnr`.

    Args:
        weights: file of torchvision's AlexNet weights; None lets torchvision download them.
        device: where the network runs.

    Raises:
        ValueError: the package or torchvision is missing, or the weights cannot be loaded.
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
            for source, target in zip(alexnet.features, (layer for part in slices for layer in part), strict=False):
                target.load_state_dict(source.state_dict())
    except Exception as error:
        raise ValueError(
            f"AlexNet's weights for LPIPS could not be loaded ({error}); give a file with --alexnet"
        ) from error
    network = network.to(device).eval().requires_grad_(False)

    def distance(images: Tensor, references: Tensor) -> Tensor:
        if images.ndim == 5:
            return _frame_mean(distance, images, references)
        pairs = zip(images.split(16), references.split(16), strict=True)
        return torch.cat([network(a.to(device), b.to(device), normalize=True).cpu().reshape(-1) for a, b in pairs])

    return distance
