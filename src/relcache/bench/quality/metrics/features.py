"""Networks that extract features, for comparing distributions of pictures.

An extractor takes uint8 pictures (n, 3, height, width) and returns float32 features (n, …) by name. There
are always "features"; some networks also give "spatial" features and class "probabilities".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Extractor = Callable[[Tensor], dict[str, Tensor]]

SPATIAL_CHANNELS = 7  # of mixed_6, as in ADM's sFID


class Inception:
    """InceptionV3 of 2015, which defines FID, sFID and the Inception score, by torch-fidelity.

    "features" are the 2048 pooled ones. "spatial" are the first 7 channels of mixed_6, 17 x 17 each, in the order of
    ADM's evaluator: 2023 values. "probabilities" are the softmax of the bias-free logits over 1008 classes.

    Args:
        weights: file of torch-fidelity's weights; None lets it download them.
        device: where the network runs.

    Raises:
        ValueError: torch-fidelity cannot be imported, or the file holds other weights.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"there are no Inception weights at {weights}")
        try:
            fidelity = importlib.import_module("torch_fidelity")
        except ImportError as error:
            raise ValueError(
                f"FID, sFID and the Inception score need torch-fidelity and torchvision ({error}): "
                "pip install 'relcache[fid]'"
            ) from error
        path = None if weights is None else str(weights)
        try:
            self.network = fidelity.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
            ).to(device)
        except Exception as error:
            source = path or "their source; give a file with --inception"
            raise ValueError(f"the Inception weights could not be loaded from {source} ({error})") from error
        self.device = device
        self._spatial = torch.zeros(0)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> dict[str, Tensor]:
        features, logits = self.network(pictures.to(self.device))
        return {
            "features": features.flatten(1).cpu(),
            "spatial": self._spatial.float().cpu(),
            "probabilities": logits.softmax(-1).cpu(),
        }
