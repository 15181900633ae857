"""What is measured of each sample by itself: scores, and features that distributions are then compared by.

A measure takes samples and references, uint8 (n, channels, height, width) or (n, frames, channels, height, width), and
their conditions, and returns values (n, …) by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import relcache_models
from relcache.metrics.features import Inception
from relcache.metrics.pair import lpips, psnr, ssim
from relcache_models import shapes
from relcache_models.classifier import Classifier
from relcache_models.recogniser import Recogniser

Measure = Callable[[Tensor, Tensor, Sequence[int | str]], dict[str, Tensor]]


def _pair(device: str) -> Measure:
    """PSNR and SSIM against full compute."""

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        left, right = images.float() / 255, references.float() / 255
        return {"psnr": psnr(left, right), "ssim": ssim(left, right)}

    return measure


def _lpips(device: str, weights: str | None = None) -> Measure:
    """LPIPS against full compute."""
    distance = lpips(weights, device)

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        return {"lpips": distance(images.float() / 255, references.float() / 255)}

    return measure


def _inception(device: str, weights: str | None = None) -> Measure:
    """InceptionV3's features and classes."""
    network = Inception(weights, device)
    return lambda images, references, conditions: network(images)


def _classifier(device: str) -> Measure:
    """The shipped classifier of Fashion-MNIST: whether it sees the class that was asked for, and its features."""
    network = Classifier.from_pretrained(relcache_models.folder("classifier-fashion-mnist"))

    @torch.no_grad()
    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        features = network.features(images.float() / 255)
        logits = network.head(features)
        return {
            "accuracy": logits.argmax(1) == torch.tensor(conditions),
            "features": features,
            "probabilities": logits.softmax(1),
        }

    return measure


def _recogniser(device: str, model: str = "recogniser-pictures") -> Measure:
    """The shipped recogniser of shapes: whether each sample shows what its prompt says, and its features."""
    network = Recogniser.from_pretrained(relcache_models.folder(model))

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        clips = (images if images.ndim == 5 else images[:, None]).float() / 255
        prompts = [shapes.parse(str(condition)) for condition in conditions]
        return {**network.judge(clips, prompts), "features": network.features(clips)}

    return measure


MEASURES: dict[str, Callable[..., Measure]] = {
    "pair": _pair,
    "lpips": _lpips,
    "inception": _inception,
    "classifier": _classifier,
    "recogniser": _recogniser,
}


def make_measure(name: str, device: str, **options: Any) -> Measure:
    """The measure of this name, its networks loaded onto `device`."""
    return MEASURES[name](device, **options)
