"""Measures of single samples: scores, and features for comparing distributions.

A measure takes samples, references and conditions, and returns values (n, …) by name. Samples and references are uint8
(n, channels, height, width) or (n, frames, channels, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import relcache_models
from relcache.bench.quality.external import ENVIRONMENTS, External, require, vbench_prompts
from relcache.bench.quality.metrics.features import Inception
from relcache.bench.quality.metrics.pair import lpips, psnr, ssim
from relcache.bench.sampling.pipelines import missing_weights, quiet_loading
from relcache_models import shapes
from relcache_models.classifier import Classifier
from relcache_models.recogniser import Recogniser

Measure = Callable[[Tensor, Tensor, Sequence[int | str]], dict[str, Tensor]]


def _pair(device: str) -> Measure:
    """Measure PSNR and SSIM to full compute."""

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        left, right = images.float() / 255, references.float() / 255
        return {"psnr": psnr(left, right), "ssim": ssim(left, right)}

    return measure


def _exact(device: str, steps: int) -> Measure:
    """Measure PSNR and SSIM to the exact solution: full compute in `steps` steps."""
    return _pair(device)


def _lpips(device: str, weights: str | None = None) -> Measure:
    """Measure LPIPS to full compute."""
    distance = lpips(weights, device)

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        return {"lpips": distance(images.float() / 255, references.float() / 255)}

    return measure


def _inception(device: str, weights: str | None = None) -> Measure:
    """Compute InceptionV3's features and class probabilities."""
    network = Inception(weights, device)
    return lambda images, references, conditions: network(images)


def _classifier(device: str) -> Measure:
    """Judge by the shipped Fashion-MNIST classifier whether each sample shows its class; also return features."""
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
    """Judge by the shipped recogniser of shapes whether each sample shows its prompt; also return features."""
    network = Recogniser.from_pretrained(relcache_models.folder(model))

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        clips = (images if images.ndim == 5 else images[:, None]).float() / 255
        prompts = [shapes.parse(str(condition)) for condition in conditions]
        return {**network.judge(clips, prompts), "features": network.features(clips)}

    return measure


def _clip(device: str, model: str = "openai/clip-vit-large-patch14") -> Measure:
    """Measure the CLIP score: 100 times the cosine of the features of a picture and its prompt.

    The paper does not name its CLIP model; `model` is a folder or a hub id.
    """
    try:
        with quiet_loading() as messages:
            processor = transformers.AutoProcessor.from_pretrained(model)
            network: torch.nn.Module = transformers.CLIPModel.from_pretrained(model)
        if lacking := missing_weights(messages):
            raise ValueError(lacking)
    except MemoryError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the CLIP score needs {model}, which could not be loaded ({reason}): give a folder with --clip"
        ) from error
    network.to(device).eval()

    @torch.no_grad()
    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        texts = [str(condition) for condition in conditions]
        inputs = processor(text=texts, images=list(images), return_tensors="pt", padding=True, truncation=True)
        found = network(**inputs.to(device))
        return {"clip": 100 * F.cosine_similarity(found.image_embeds, found.text_embeds).cpu()}

    return measure


def _image_reward(device: str) -> Measure:
    """Score by ImageReward, in its own environment."""
    ask = External("image-reward", device)
    return lambda images, references, conditions: {"image_reward": torch.tensor(ask(images, conditions))}


DIMENSIONS = {
    "subject_consistency": (0.1462, 1.0, 1.0), "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0), "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5), "aesthetic_quality": (0.0, 1.0, 1.0), "imaging_quality": (0.0, 1.0, 1.0),
    "object_class": (0.0, 1.0, 1.0), "multiple_objects": (0.0, 1.0, 1.0), "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0), "spatial_relationship": (0.0, 1.0, 1.0), "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0), "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}  # fmt: skip
"""VBench's dimensions: least value, greatest value, weight. The first seven rate quality, the others meaning.

Source: VBench's own constants (Huang et al., CVPR 2024; Apache-2.0).
"""
QUALITY, QUALITY_WEIGHT, MEANING_WEIGHT = 7, 4, 1


def _vbench_dimensions(device: str) -> Measure:
    """Score by VBench's dimensions, in its own environment: (n,) each, NaN if a dimension does not judge a prompt."""
    ask = External("vbench", device, dimensions=list(DIMENSIONS))

    def measure(images: Tensor, references: Tensor, conditions: Sequence[int | str]) -> dict[str, Tensor]:
        scores = [[math.nan if value is None else value for value in row] for row in ask(images, conditions)]
        return dict(zip(DIMENSIONS, torch.tensor(scores).unbind(1), strict=True))

    return measure


def unjudged(prompts: Sequence[int | str]) -> list[str]:
    """Return the dimensions of VBench that judge none of these prompts from its list."""
    known = vbench_prompts()
    return [name for name in DIMENSIONS if not any(name in known[str(prompt)] for prompt in prompts)]


def vbench_total(scores: Tensor) -> float | None:
    """Return VBench's total in percent for float scores (n, 16); None if a dimension has no clip."""
    means = scores.double().nanmean(0)
    if means.isnan().any():
        return None
    least, most, weight = torch.tensor(list(DIMENSIONS.values()), dtype=torch.float64).unbind(1)
    scaled = (means - least) / (most - least) * weight
    quality = scaled[:QUALITY].sum() / weight[:QUALITY].sum()
    meaning = scaled[QUALITY:].sum() / weight[QUALITY:].sum()
    total = (QUALITY_WEIGHT * quality + MEANING_WEIGHT * meaning) / (QUALITY_WEIGHT + MEANING_WEIGHT)
    return float(100 * total)


MEASURES: dict[str, Callable[..., Measure]] = {
    "pair": _pair,
    "exact": _exact,
    "lpips": _lpips,
    "inception": _inception,
    "classifier": _classifier,
    "recogniser": _recogniser,
    "clip": _clip,
    "image-reward": _image_reward,
    "vbench": _vbench_dimensions,
}


def make_measure(name: str, device: str, **options: Any) -> Measure:
    """Return the measure of this name, with its networks on `device`."""
    return MEASURES[name](device, **options)


def unavailable(name: str, conditions: Sequence[int | str] = (), **options: Any) -> str | None:
    """Return why samples of `conditions` cannot be measured here, with the remedy; None if they can."""
    try:
        if name in ENVIRONMENTS:
            require(name)
        if name == "vbench" and (others := set(conditions) - vbench_prompts().keys()):
            return f"VBench judges its own prompts only, and {min(map(str, others))!r} is not one: leave --prompts out"
        if name == "recogniser":
            for condition in conditions:
                shapes.parse(str(condition))
        elif name in ("clip", "lpips", "inception"):
            make_measure(name, "cpu", **options)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None
