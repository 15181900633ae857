"""Fréchet distance between the features of two sets of pictures. Computed by torchmetrics in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class _Given(nn.Module):
    """Lets torchmetrics take features where it expects pictures."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, references: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, each (n, width), n at least 2.

    With the features of InceptionV3 this is FID; with other features it is not, and must not be called so. It is
    biased upwards where n is not many times the width.

    Raises:
        ValueError: fewer than two samples on one side.
    """
    if min(len(features), len(references)) < 2:
        raise ValueError(
            f"a Fréchet distance needs two samples on each side, got {len(features)} and {len(references)}"
        )
    distance = FrechetInceptionDistance(feature=_Given(features.shape[1]))
    distance.set_dtype(torch.float64)
    distance.update(references.double(), real=True)
    distance.update(features.double(), real=False)
    return float(distance.compute())
