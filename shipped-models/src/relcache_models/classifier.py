"""The small Fashion-MNIST classifier, which judges generated pictures and gives features for Fréchet distances."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from relcache_models.weights import load_into


class Classifier(nn.Module):
    """Three convolution stages and two linear layers, with about 240 thousand parameters.

    `num_features` is the width of the features, by torchmetrics' name.
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.stages = nn.Sequential(
            *stage(1, 32),
            nn.MaxPool2d(2),
            *stage(32, 64),
            nn.MaxPool2d(2),
            *stage(64, self.num_features),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(self.num_features * 9, self.num_features, bias=False),
            nn.BatchNorm1d(self.num_features),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (n, 128) of grey images (n, 1, 28, 28) in [0, 1], all float32.

        Raises:
            ValueError: the images have another size.
        """
        if images.ndim != 4 or images.shape[1:] != (1, 28, 28):
            raise ValueError(f"the classifier of Fashion-MNIST takes (n, 1, 28, 28), got {tuple(images.shape)}")
        return self.stages(images * 2 - 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the class logits (n, 10) of grey images (n, 1, 28, 28) in [0, 1], all float32."""
        return self.head(self.features(images))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Classifier:
        """Load the classifier in `folder` (`model.safetensors`), in evaluation mode.

        Raises:
            FileNotFoundError: `folder` has no `model.safetensors`.
            ValueError: the file is broken.
        """
        classifier = cls()
        load_into(classifier, Path(folder) / "model.safetensors")
        return classifier.eval()
