"""Sampling a class-conditional pipeline in batches from one seed per sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relcache.api import enable
from relcache.methods import Method
from relcache.report import Report


@dataclass
class Samples:
    """Pictures of one method, and what it took to make them.

    Attributes:
        images: (n, channels, height, width) float32 in [0, 1].
        seconds: time of all batches together.
        reports: one per batch.
    """

    images: Tensor
    seconds: float
    reports: list[Report] = field(default_factory=list)

    @property
    def nfc(self) -> float:
        """Mean number of full steps over the samples (batches may differ in size)."""
        return sum(report.nfc * report.batch for report in self.reports) / sum(report.batch for report in self.reports)

    @property
    def flops(self) -> float:
        """Floating point operations per sample; NaN if they could not be counted."""
        return sum(math.nan if report.flops is None else report.flops for report in self.reports) / len(self.images)


@dataclass(frozen=True)
class Sampler:
    """How a class-conditional pipeline is sampled.

    Seeds belong to samples: a picture depends on its seed and its class, not on the batch that it is made in.
    """

    pipeline: Any
    steps: int = 50
    guidance: float = 1.5
    batch: int = 32

    def run(
        self, method: Method, seeds: list[int], labels: list[int], advance: Callable[[int], None] = lambda count: None
    ) -> Samples:
        """Pictures for `seeds` and `labels` by `method`; `advance` is called with the size of each finished batch."""
        images, seconds, reports = [], 0.0, []
        for start in range(0, len(seeds), self.batch):
            rows = slice(start, start + self.batch)
            with enable(self.pipeline, method) as handle:
                began = time.perf_counter()
                pictures = self.pipeline(
                    class_labels=labels[rows],
                    guidance_scale=self.guidance,
                    num_inference_steps=self.steps,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
                    output_type="np",
                ).images
                seconds += time.perf_counter() - began
                reports.append(handle.report())
            images.append(torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
            advance(len(pictures))
        return Samples(torch.cat(images), seconds, reports)
