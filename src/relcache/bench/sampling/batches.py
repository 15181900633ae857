"""Sample a pipeline in batches, with one seed per sample."""

from __future__ import annotations

import inspect
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import torch
from torch import Tensor

from relcache.api import enable
from relcache.bench.sampling.pipelines import is_out_of_memory
from relcache.checks import did_you_mean
from relcache.method import Method
from relcache.session.report import Report

PACKAGE = Path(__file__).parents[2]
OWN = ("num_inference_steps", "generator", "output_type", "return_dict", "num_images_per_prompt",
       "num_videos_per_prompt")  # fmt: skip
POSITIVE = ("height", "width", "num_frames", "max_sequence_length")
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


@dataclass
class Samples:
    """Pictures or clips of one method, with their time and reports.

    Attributes:
        images: float32 in [0, 1], pictures (n, channels, height, width) or clips (n, frames, channels, height, width).
        seconds: the time of all batches together.
        reports: one per batch.
    """

    images: Tensor
    seconds: float
    reports: list[Report] = field(default_factory=list)

    @property
    def nfc(self) -> float:
        """Mean number of full steps over the samples."""
        return sum(report.nfc * report.batch for report in self.reports) / sum(report.batch for report in self.reports)


def smaller(pipeline: Any) -> list[str]:
    """Return the command-line options that make a pipeline's samples smaller."""
    taken = inspect.signature(pipeline.__call__).parameters
    options = {"height": "a smaller --size", "num_frames": "fewer --frames"}
    return [option for name, option in options.items() if name in taken]


def _check_option(name: str, value: Any, annotation: Any) -> None:
    """Raise ValueError unless `value` has the plain type that the pipeline annotates, such as a number or a text.

    The pipeline checks other types, such as lists and tensors, itself.
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(kind in PLAIN for kind in kinds):
        return
    fits = isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(PLAIN[kind] for kind in kinds)
        raise ValueError(f"{name} is {names}, got {value!r}: see --option")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is a finite number, got {value!r}: see --option")
    if name in POSITIVE and value is not None and value < 1:
        raise ValueError(f"{name} is at least 1, got {value!r}: see --option")


@dataclass(frozen=True)
class Sampler:
    """Sample a pipeline in batches.

    A sample depends on its seed and its condition, not on its batch. `options` are further arguments of the pipeline's
    call, such as guidance_scale.
    """

    pipeline: Any
    steps: int = 50
    batch: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = inspect.signature(self.pipeline.__call__).parameters
        for name in self.options:
            if name in (*OWN, self.condition):
                raise ValueError(f"{name} is not an option: relcache sets it itself")
            if name not in taken and not any(value.kind is value.VAR_KEYWORD for value in taken.values()):
                kind = type(self.pipeline).__name__
                raise ValueError(
                    f"{kind} takes no {name}: {did_you_mean(name, taken)}it takes {', '.join(sorted(taken.keys()))}"
                )
            if name in taken:
                _check_option(name, self.options[name], taken[name].annotation)

    @property
    def condition(self) -> str:
        """The pipeline's name for the conditions: "class_labels" or "prompt"."""
        taken = inspect.signature(self.pipeline.__call__).parameters
        return "class_labels" if "class_labels" in taken else "prompt"

    def run(
        self,
        method: Method,
        seeds: Sequence[int],
        conditions: Sequence[int | str],
        advance: Callable[[int], None] = lambda count: None,
    ) -> Samples:
        """Sample `seeds` and `conditions` (class labels or prompts) by `method`.

        `advance` is called with the size of each finished batch.
        """
        images, seconds, reports = [], 0.0, []
        for start in range(0, len(seeds), self.batch):
            rows = slice(start, start + self.batch)
            with enable(self.pipeline, method) as handle:
                began = time.perf_counter()
                images.append(self.call(seeds[rows], conditions[rows]))
                seconds += time.perf_counter() - began
                reports.append(handle.report())
            if not reports[-1].batch:
                raise ValueError(f"{type(self.pipeline).__name__} made no step with {dict(self.options)}")
            advance(len(images[-1]))
        return Samples(torch.cat(images), seconds, reports)

    def call(self, seeds: Sequence[int], conditions: Sequence[int | str]) -> Tensor:
        """Sample one batch with the pipeline as it is, and return images like those of `Samples`.

        Raises:
            ValueError: prompts for a pipeline that takes classes, or classes for one that takes prompts.
        """
        by_class = self.condition == "class_labels"
        if by_class == isinstance(conditions[0], str):
            kind, wrong = ("classes", "prompt") if by_class else ("prompts", "class label")
            raise ValueError(f"{type(self.pipeline).__name__} takes {kind}, got the {wrong} {conditions[0]!r}")
        try:
            output = self.pipeline(
                **{self.condition: list(conditions)},
                num_inference_steps=self.steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
                **self.options,
            )
        except (ValueError, OSError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or _is_ours(error):
                raise
            options = ", ".join(f"{name} {value!r}" for name, value in self.options.items()) or "no options"
            cause = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
            raise ValueError(f"{type(self.pipeline).__name__} cannot be called with {options} ({cause})") from error
        images = output.frames if hasattr(output, "frames") else output.images
        return torch.as_tensor(images).movedim(-1, -3).float()


def _is_ours(error: BaseException) -> bool:
    """Whether code of relcache was running when `error` was raised; such an error is raised unchanged."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without the call itself
    return any(Path(frame.filename).is_relative_to(PACKAGE) for frame in frames)
