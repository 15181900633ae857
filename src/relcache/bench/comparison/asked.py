"""What a command line asks for, as the pipelines and methods take it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from relcache.bench.comparison.benchmarks import SMALL
from relcache.bench.sampling.gallery import slug
from relcache.bench.sampling.pipelines import class_numbers, is_class_conditional, number_of_classes
from relcache.methods import value_from_text


def call_options(
    model: str | None, guidance: float | None, size: str | None, frames: int | None, more: list[str]
) -> dict[str, Any]:
    """Arguments of the pipeline's call: a shipped model's own, then what the command line gives."""
    shipped = next((task for task in SMALL.values() if task.model == model), None)
    options = {**shipped.options, "guidance_scale": shipped.guidance} if shipped else {}
    if guidance is not None:
        if not math.isfinite(guidance):
            raise ValueError(f"--guidance is a finite number, got {guidance}")
        options["guidance_scale"] = guidance
    if size is not None:
        parts = size.lower().split("x")
        if len(parts) > 2 or not all(re.fullmatch("[1-9][0-9]{0,6}", part) for part in parts):
            raise ValueError(f"--size takes HEIGHTxWIDTH such as 480x832, or one number, got {size!r}")
        options |= {"height": int(parts[0]), "width": int(parts[-1])}
    if frames is not None:
        options["num_frames"] = frames
    for text in more:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--option takes name=value, got {text!r}")
        options[name.strip()] = value_from_text(value)
    return options


def conditions(pipeline: Any, prompts: list[str] | None, classes: str | None) -> tuple[list[int | str], list[str]]:
    """What the pipeline is asked for, and a name of each for its file."""
    if not is_class_conditional(pipeline):
        if classes is not None or not prompts:
            raise ValueError(
                f"{type(pipeline).__name__} is asked by --prompt, not by --classes; give one prompt or more"
            )
        return list(prompts), [slug(prompt) for prompt in prompts]
    if prompts:
        raise ValueError(f"{type(pipeline).__name__} is asked by --classes, not by --prompt")
    every = [str(number) for number in range(min(10, number_of_classes(pipeline)))]
    labels = class_numbers(pipeline, classes.split(",") if classes is not None else every)
    names = {number: name for name, number in pipeline.labels.items()}
    return list(labels), [slug(names.get(label, str(label))) for label in labels]


def for_calibration(pipeline: Any, asked: list[int | str], number: int) -> list[int | str]:
    """`number` conditions to calibrate on: all classes in turn, or the prompts asked for in turn."""
    turn = range(number_of_classes(pipeline)) if is_class_conditional(pipeline) else asked
    return [turn[index % len(turn)] for index in range(number)]


def asked_of(model: str, prompts: list[str] | None, seeds: Sequence[int]) -> list[int | str]:
    """A condition for each seed: `prompts` in turn, else what the benchmark of a shipped model asks, else classes."""
    if prompts:
        return [prompts[index % len(prompts)] for index in range(len(seeds))]
    known = next((task for task in SMALL.values() if task.model == model), SMALL["class"])
    return known.conditions(seeds)
