"""The tasks of the demonstration: which shipped model, what it is asked for, and how what it makes is judged."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import relcache_models
from relcache.metrics.frechet import frechet_distance
from relcache_models import shapes
from relcache_models.classifier import Classifier
from relcache_models.recogniser import Recogniser

Conditions = Sequence[int | str]
Judge = Callable[[Tensor, Conditions, Tensor | None], dict[str, float | None]]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        model: name of the shipped model.
        guidance: default guidance scale.
        options: further arguments of the pipeline's call.
        conditions: class labels or prompts for some seeds.
        judge: makes the function that scores samples for their conditions, given the references made with full
            compute (None for those themselves).
        columns: of the judge's scores: heading in the terminal by name.
        meaning: a sentence that explains them.
    """

    model: str
    guidance: float
    conditions: Callable[[Sequence[int]], list[int | str]]
    judge: Callable[[], Judge]
    columns: Mapping[str, str]
    meaning: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _labels(seeds: Sequence[int]) -> list[int | str]:
    return [index % 10 for index in range(len(seeds))]


def _prompts(video: bool) -> Callable[[Sequence[int]], list[int | str]]:
    def prompts(seeds: Sequence[int]) -> list[int | str]:
        return [str(shapes.sample_prompt(random.Random(seed), video=video, held_out=None)) for seed in seeds]

    return prompts


def _classifier() -> Judge:
    classifier = Classifier.from_pretrained(relcache_models.folder("classifier-fashion-mnist"))

    @torch.no_grad()
    def judge(images: Tensor, conditions: Conditions, references: Tensor | None) -> dict[str, float | None]:
        predicted = _chunked(classifier, images).argmax(1)
        accuracy = float((predicted == torch.tensor(conditions)).float().mean())
        if references is None:
            return {"accuracy": accuracy, "frechet": None}
        features, wanted = (_chunked(classifier.features, part) for part in (images, references))
        return {"accuracy": accuracy, "frechet": frechet_distance(features, wanted)}

    return judge


def _recogniser(name: str) -> Callable[[], Judge]:
    def make() -> Judge:
        recogniser = Recogniser.from_pretrained(relcache_models.folder(name))

        def judge(images: Tensor, conditions: Conditions, references: Tensor | None) -> dict[str, float | None]:
            clips = images if images.ndim == 5 else images[:, None]
            prompts = [shapes.parse(str(condition)) for condition in conditions]
            right = recogniser.judge(clips, prompts)
            return {key: float(values.float().mean()) for key, values in right.items()}

        return judge

    return make


def _chunked(network: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    return torch.cat([network(part) for part in images.split(size)])


TASKS = {
    "class": Task(
        "dit-fashion-mnist",
        1.5,
        _labels,
        _classifier,
        {"accuracy": "class", "frechet": "Fréchet"},
        "class is the share of pictures in which the classifier sees the class that was asked for; the Fréchet "
        "distance is of the shipped classifier's features and is not FID",
    ),
    "text": Task(
        "small-flux",
        3.5,
        _prompts(video=False),
        _recogniser("recogniser-pictures"),
        {"kind": "kind", "colour": "colour", "size": "size", "place": "place", "right": "all right"},
        "kind to place are the shares of pictures in which the recogniser finds what the prompt says of each, and all "
        "right that of those in which it finds everything",
        {"height": 64, "width": 64, "max_sequence_length": 16},
    ),
    "video": Task(
        "small-video",
        6.0,
        _prompts(video=True),
        _recogniser("recogniser-clips"),
        {"kind": "kind", "colour": "colour", "size": "size", "motion": "motion", "right": "all right"},
        "kind to motion are the shares of clips in which the recogniser finds what the prompt says of each, and all "
        "right that of those in which it finds everything",
        {"height": 48, "width": 48, "num_frames": 9, "max_sequence_length": 16},
    ),
}
