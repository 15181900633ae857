"""The benchmarks: the paper's three protocols, and the same on the shipped models."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, TypeVar

from relcache.bench.comparison.summaries import Column, distance_to_full, mean, mean_of_judged, score, total
from relcache.bench.quality.external import vbench_prompts
from relcache.bench.quality.measures import DIMENSIONS, vbench_total
from relcache.checks import unknown
from relcache_models import shapes

Conditions = list[int | str]
T = TypeVar("T")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        task: "class", "text" or "video".
        model: a shipped model or a hub id.
        samples: default number of samples.
        targets: default numbers of full steps.
        conditions: returns class labels or prompts for some seeds.
        measures: the options of each measure by name.
        columns: the table's columns by name.
        meaning: a sentence that explains the columns.
        options: further arguments of the pipeline's call.
        batch: default number of samples per batch.
        warmup: full steps at the beginning of a run, by method, if not two.
    """

    task: str
    model: str
    guidance: float
    samples: int
    targets: tuple[int, ...]
    conditions: Callable[[Sequence[int]], Conditions]
    measures: Mapping[str, Mapping[str, Any]]
    columns: Mapping[str, Column]
    meaning: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 50
    batch: int = 32
    warmup: Mapping[str, int] = field(default_factory=dict)


def in_turn(values: Iterable[T], number: int) -> list[T]:
    """Return `number` values, repeating `values` in order."""
    return list(islice(cycle(values), number))


def _labels(classes: int) -> Callable[[Sequence[int]], Conditions]:
    return lambda seeds: in_turn(range(classes), len(seeds))


def _prompts(video: bool) -> Callable[[Sequence[int]], Conditions]:
    return lambda seeds: [str(shapes.sample_prompt(random.Random(seed), video=video, held_out=None)) for seed in seeds]


def _drawbench(seeds: Sequence[int]) -> Conditions:
    raise ValueError(
        "the 200 prompts of DrawBench are not shipped, as no licence is stated for them: give their CSV file, or any "
        "file with a prompt on each line, as --prompts"
    )


PAIR = {
    "psnr": Column("PSNR", ".2f", mean("pair", "psnr", against_full=True)),
    "ssim": Column("SSIM", ".4f", mean("pair", "ssim", against_full=True)),
}
VBENCH = {
    "vbench": Column("VBench", ".2f", total("vbench", list(DIMENSIONS), vbench_total)),
    **{name: Column(name.replace("_", " "), ".4f", mean_of_judged("vbench", name), detail=True) for name in DIMENSIONS},
}
LPIPS = {"lpips": Column("LPIPS", ".4f", mean("lpips", "lpips", against_full=True))}


def _recognised(where: str) -> dict[str, Column]:
    names = {"kind": "kind", "colour": "colour", "size": "size", where: where, "right": "all right"}
    return {name: Column(heading, ".3f", mean("recogniser", name)) for name, heading in names.items()}


SMALL = {
    "class": Benchmark(
        task="class", model="dit-fashion-mnist", guidance=1.5, samples=16, targets=(14, 8, 7), conditions=_labels(10),
        measures={"pair": {}, "classifier": {}},
        columns={
            **PAIR,
            "accuracy": Column("class", ".3f", mean("classifier", "accuracy")),
            "frechet": Column("Fréchet", ".3f", distance_to_full("classifier")),
        },
        meaning="class is the share of pictures in which the classifier sees the requested class; the "
        "Fréchet distance is to full compute, of the shipped classifier's features, and is not FID",
    ),
    "text": Benchmark(
        task="text", model="small-flux", guidance=3.5, samples=16, targets=(14, 8), conditions=_prompts(video=False),
        measures={"pair": {}, "recogniser": {"model": "recogniser-pictures"}},
        columns={**PAIR, **_recognised("place")},
        meaning="kind to place are the shares of pictures in which the recogniser finds that part of the prompt; "
        "all right is the share in which it finds every part",
        options={"height": 64, "width": 64, "max_sequence_length": 16},
    ),
    "video": Benchmark(
        task="video", model="small-video", guidance=6.0, samples=8, targets=(14, 8), conditions=_prompts(video=True),
        measures={"pair": {}, "recogniser": {"model": "recogniser-clips"}},
        columns={**PAIR, **_recognised("motion")},
        meaning="kind to motion are the shares of clips in which the recogniser finds that part of the prompt; "
        "all right is the share in which it finds every part",
        options={"height": 48, "width": 48, "num_frames": 9, "max_sequence_length": 16},
    ),
}  # fmt: skip
"""The shipped models' benchmarks, by task."""

PAPER = {
    "class": Benchmark(
        task="class", model="facebook/DiT-XL-2-256", guidance=1.5, samples=50_000, targets=(14, 11, 10, 8, 7),
        conditions=_labels(1000), measures={"inception": {}},
        columns={
            "fid2fc": Column("FID2FC", ".2f", distance_to_full("inception")),
            "sfid2fc": Column("sFID2FC", ".2f", distance_to_full("inception", "spatial")),
            "is": Column("IS", ".2f", score("inception")),
        },
        meaning="FID2FC and sFID2FC are the distances to the samples of full compute",
    ),
    "text": Benchmark(
        task="text", model="black-forest-labs/FLUX.1-dev", guidance=3.5, samples=200, targets=(14, 8),
        conditions=_drawbench, measures={"pair": {}, "lpips": {}, "image-reward": {}, "clip": {}},
        columns={
            **PAIR,
            **LPIPS,
            "image_reward": Column("ImageReward", ".4f", mean("image-reward", "image_reward")),
            "clip": Column("CLIP", ".2f", mean("clip", "clip")),
        },
        meaning="PSNR, SSIM and LPIPS are against full compute",
        options={"height": 992, "width": 992, "max_sequence_length": 512}, batch=1,
        warmup={"fora": 1, "taylorseer": 3, "rfe": 3, "linear": 3, "newton": 3},
    ),
    "video": Benchmark(
        task="video", model="hunyuanvideo-community/HunyuanVideo", guidance=6.0, samples=946, targets=(9, 7),
        conditions=lambda seeds: in_turn(vbench_prompts(), len(seeds)),
        measures={"pair": {}, "lpips": {}, "vbench": {}}, columns={**PAIR, **LPIPS, **VBENCH},
        meaning="PSNR, SSIM and LPIPS are against full compute, per frame and then their mean",
        options={"height": 480, "width": 640, "num_frames": 33}, batch=1, warmup={"fora": 1},
    ),
}  # fmt: skip
"""The paper's protocols, by task."""

PRESETS = {"paper": PAPER, "small": SMALL}
NAMES = {"class-conditional": "class", "text-to-image": "text", "text-to-video": "video"}


def benchmark_of(name: str, preset: str) -> Benchmark:
    """Return the benchmark of this name, as the paper runs it ("paper") or on the shipped model ("small").

    Raises:
        ValueError: an unknown name or preset.
    """
    if name not in NAMES:
        raise ValueError(unknown("benchmark", name, NAMES))
    if preset not in PRESETS:
        raise ValueError(unknown("preset", preset, PRESETS))
    return PRESETS[preset][NAMES[name]]


def shipped_benchmark(model: str | None) -> Benchmark | None:
    """Return the benchmark of a shipped model; None for other models."""
    return next((task for task in SMALL.values() if task.model == model), None)
