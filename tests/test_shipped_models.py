"""The shipped models: plain diffusers loads them, they are small, and their pictures show the class asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

import relcache
import relcache_models
from relcache_models.classifier import Classifier

MODEL = relcache_models.folder("dit-fashion-mnist")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_names_and_folders() -> None:
    assert relcache_models.names() == ["classifier-fashion-mnist", "dit-fashion-mnist"]
    with pytest.raises(ValueError, match="there are: classifier-fashion-mnist, dit-fashion-mnist"):
        relcache_models.folder("dit-cifar")


def test_sizes() -> None:
    assert size(MODEL) <= 24e6
    assert size(relcache_models.folder("classifier-fashion-mnist")) <= 2e6
    assert size(Path(relcache.__file__).parent) < 1e6  # what the library's own wheel holds
    for name in relcache_models.names():
        assert (relcache_models.folder(name) / "README.md").stat().st_size > 500


def test_transformer_loads_as_the_plain_class() -> None:
    transformer = DiTTransformer2DModel.from_pretrained(MODEL / "transformer")
    assert len(transformer.transformer_blocks) >= 12
    assert all(parameter.isfinite().all() for parameter in transformer.parameters())


def test_autoencoder_is_the_identity() -> None:
    vae = DiTPipeline.from_pretrained(MODEL).vae
    pictures = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert (vae.decode(pictures).sample - pictures).abs().max() < 5e-4
        assert (vae.encode(pictures).latent_dist.mode() - pictures).abs().max() < 5e-4


def test_pictures_show_the_class_asked_for() -> None:
    """Of 60 pictures made with full compute; the whole claim, over 1,000, is in the model card with its command."""
    pipeline = DiTPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    labels = [index % 10 for index in range(60)]
    pictures = pipeline(
        labels, 1.5, [torch.Generator().manual_seed(seed) for seed in range(60)], 50, output_type="pt"
    ).images
    classifier = Classifier.from_pretrained(relcache_models.folder("classifier-fashion-mnist"))
    with torch.no_grad():
        right = (classifier(pictures).argmax(1) == torch.tensor(labels)).float().mean()
    assert right >= 0.75  # 85 % less two standard deviations of a share of 60
