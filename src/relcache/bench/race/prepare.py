"""The benchmark of a race: a shipped model's own, or one made for a folder or a hub id."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from relcache.bench.comparison.benchmarks import PAIR, SMALL, VBENCH, Benchmark, in_turn, shipped_benchmark
from relcache.bench.comparison.comparison import EXACT
from relcache.bench.comparison.summaries import Column, distance_to_full
from relcache.bench.quality.measures import unavailable
from relcache.bench.race.data import distance_to_data
from relcache.bench.sampling.pipelines import class_count, model_folder

TARGETS = (25, 20, 14, 10, 8, 6)
EXACT_STEPS = 500  # a divisor of 1,000: DDIM of diffusers leaves out the noisiest timesteps at other numbers
BATCH = 8


def race_benchmark(model: str, lpips: str | None, exact_steps: int | None) -> Benchmark:
    """Return the benchmark of a race on `model`, by full compute's pictures, the exact solution and the recognisers.

    Args:
        model: a shipped model, a folder or a hub id.
        lpips: a file with AlexNet's weights; without it LPIPS is not measured.
        exact_steps: steps of the exact solution, which costs as much as so many full steps of each sample; 0 leaves it
            out. None takes 500 for a shipped model, and 0 for others.

    Raises:
        ValueError: a folder or hub id without a pipeline.
    """
    shipped = shipped_benchmark(model)
    chosen = shipped or _of_pipeline(model)
    measures: dict[str, Mapping[str, Any]] = {**chosen.measures}
    if exact_steps is None:
        exact_steps = EXACT_STEPS if shipped else 0
    if exact_steps:
        measures[EXACT] = {"steps": exact_steps}
    if lpips is not None:
        measures["lpips"] = {"weights": lpips}
    return replace(chosen, targets=TARGETS, measures=measures, batch=BATCH if shipped else 1, samples=64)


def race_columns(benchmark: Benchmark) -> dict[str, Column]:
    """Return the columns of numbers of all samples together: Fréchet distances to full compute and to the data."""
    if "classifier" in benchmark.measures:
        return {"frechet": Column("Fréchet to full compute", ".3f", distance_to_full("classifier"))}
    if "recogniser" in benchmark.measures:
        return {
            "frechet": Column("Fréchet to full compute", ".3f", distance_to_full("recogniser")),
            "frechet_data": Column("Fréchet to the data", ".3f", distance_to_data),
        }
    return {"vbench": VBENCH["vbench"]} if "vbench" in benchmark.measures else {}


def _of_pipeline(model: str) -> Benchmark:
    """Return a benchmark with the measures of pairs; with ImageReward or VBench if its environment is installed."""
    folder = model_folder(model)
    try:
        index = DiffusionPipeline.load_config(str(folder) if folder.is_dir() else model)
    except OSError as error:
        raise ValueError(f"{model} is no shipped model, no folder of a pipeline and no hub id: {error}") from error
    classes = class_count(model) or 1000 if index.get("_class_name") == "DiTPipeline" else None
    task = "text" if classes is None else "class"
    judge = None if classes is not None else "vbench" if _makes_clips(str(index.get("_class_name"))) else "image-reward"
    judged: dict[str, Mapping[str, Any]] = {} if judge is None or unavailable(judge) else {judge: {}}
    return replace(
        SMALL[task], model=model, options={}, measures={"pair": {}, **judged}, columns=PAIR,
        meaning="both are against full compute",
        conditions=_prompts_needed if classes is None else lambda seeds: in_turn(range(classes), len(seeds)),
    )  # fmt: skip


def _makes_clips(pipeline: str) -> bool:
    """Whether a pipeline class of diffusers makes clips."""
    kind = getattr(diffusers, pipeline, None)
    return kind is not None and "num_frames" in inspect.signature(kind.__call__).parameters


def _prompts_needed(seeds: Any) -> Any:
    raise ValueError("this model takes prompts: give a file with a prompt on each line as --prompts")
